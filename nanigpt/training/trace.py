"""Divide the time of a trace into phases and communication that no computation hides.

Times are microseconds of the trace's clock; intervals are sorted, disjoint pairs of them.
"""

import bisect
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanigpt.training.collectives import LABEL
from nanigpt.training.phases import PHASES

Interval = tuple[float, float]


@dataclass
class Communication:
    """Communication of one rank along one mesh axis, per step.

    Attributes:
        total: Milliseconds between the start of a collective and its end, including the rank's wait
            for the others.
        exposed: Milliseconds of `total` during which nothing is computed.
        calls: Number of calls.
        mib: MiB that the rank gives.
    """

    total: float = 0.0
    exposed: float = 0.0
    calls: float = 0.0
    mib: float = 0.0


@dataclass
class Summary:
    """Division of the time of some steps, in ms per step.

    Attributes:
        wall: Total time, of the host on a CPU, of the device on CUDA.
        phases: Time of each phase without its exposed communication; `other` is the residual.
            Phases and exposed communication add up to `wall`.
        communication: Communication by mesh axis. If several axes expose the same time, only one of
            them counts it.
    """

    wall: float
    phases: dict[str, float]
    communication: dict[str, Communication]

    def metrics(self) -> dict[str, float]:
        """Return exposed communication, as columns of the metrics."""
        return {f"ms_communication_{axis}": c.exposed for axis, c in self.communication.items()}

    def __str__(self) -> str:
        rows = [(name, spent, "") for name, spent in self.phases.items()]
        for axis, c in self.communication.items():
            more = f"  of {c.total:.3f} ms in {c.calls:.0f} calls, {c.mib:.2f} MiB"
            rows.append((f"communication {axis}, exposed", c.exposed, more))
        rows.append(("wall", self.wall, ""))
        lines = [f"{'':30}{'ms/step':>10}{'':>8}"]
        lines += [f"{n:30}{ms:10.3f}{ms / self.wall:8.1%}{more}" for n, ms, more in rows]
        return "\n".join(lines)


def read_trace(path: str) -> list[dict[str, Any]]:
    """Return the events of a trace that torch.profiler wrote."""
    with gzip.open(path) as stream:
        return [e for e in json.load(stream)["traceEvents"] if e.get("ph") == "X"]


def summarize(events: Iterable[dict[str, Any]], *, steps: int, axes: dict[str, str]) -> Summary:
    """Divide the time of a trace of `steps` steps, whose phases are spans `phase NAME`.

    On CUDA a collective is a kernel of NCCL. Any other kernel or copy is computation, and belongs
    to the phase in which the host launched it; time in which the device does neither is `other`. On
    a CPU gloo's spans and their labels mark a collective; computation is an operator of the main
    thread that calls no other operator. Time between operators is therefore no computation: while a
    collective is under way, the host's time to call operators counts as exposed.

    Args:
        axes: Mesh axes of NCCL's process groups, by name.
    """
    events = sorted(events, key=lambda e: (e["ts"], -e["dur"]))
    on_device = any(e.get("cat") == "kernel" for e in events)
    phases, communication, computation = _of_device(events, axes) if on_device else _of_host(events)
    everything = [
        *((start, end) for spans in phases.values() for start, end in spans),
        *((start, end) for spans in communication.values() for start, end, _, _ in spans),
    ]
    wall = max(end for _, end in everything) - min(start for start, _ in everything)
    hidden = _union(computation)
    claimed: list[Interval] = []  # each moment belongs to one part
    told: dict[str, Communication] = {}
    for axis, spans in sorted(communication.items()):
        busy = _union((start, end) for start, end, _, _ in spans)
        exposed = _minus(_minus(busy, hidden), claimed)
        claimed = _union([*claimed, *exposed])
        told[axis] = Communication(
            total=_length(busy) / 1000 / steps,
            exposed=_length(exposed) / 1000 / steps,
            calls=sum(calls for _, _, calls, _ in spans) / steps,
            mib=sum(size for _, _, _, size in spans) / 2**20 / steps,
        )
    spent: dict[str, float] = {}
    for phase in sorted(phases.keys() - {"other"}, key=[*PHASES, *phases].index):
        busy = _minus(_union(phases[phase]), claimed)
        claimed = _union([*claimed, *busy])
        spent[phase] = _length(busy) / 1000 / steps
    spent["other"] = (wall - _length(claimed)) / 1000 / steps
    return Summary(wall=wall / 1000 / steps, phases=spent, communication=told)


Phases = dict[str, list[Interval]]
Spans = dict[str, list[tuple[float, float, int, float]]]  # by axis: start, end, calls, bytes


def _of_host(events: list[dict[str, Any]]) -> tuple[Phases, Spans, list[Interval]]:
    marks = _marks(events)
    main = marks[0]["tid"]
    begin, finish = marks[0]["ts"], _end(marks[-1])
    phases: Phases = defaultdict(list)
    for e in marks:
        phases[e["name"].removeprefix("phase ")].append((e["ts"], _end(e)))
    spans: Spans = defaultdict(list)
    labels: list[tuple[float, float, str]] = []
    leaves: list[Interval] = []
    operators = []
    for e in events:
        if e["name"].startswith(f"{LABEL} "):
            _, axis, size, _ = e["name"].split(" ", 3)
            labels.append((e["ts"], _end(e), axis))
            spans[axis].append((e["ts"], _end(e), 1, float(size)))
        elif e["name"].startswith("gloo:"):
            # The call under way starts it, and a thread of the process group ends it.
            for start, end, axis in reversed(labels):
                if start <= e["ts"] <= end:
                    spans[axis].append((e["ts"], min(_end(e), finish), 0, 0.0))
                    break
        elif e.get("cat") == "cpu_op" and e["tid"] == main and begin <= e["ts"] < finish:
            operators.append(e)
    for operator, following in zip(operators, [*operators[1:], None], strict=True):
        is_leaf = following is None or following["ts"] >= _end(operator)
        if is_leaf and not operator["name"].startswith(("c10d", "_c10d")):
            leaves.append((operator["ts"], _end(operator)))
    called = _union((start, end) for start, end, _ in labels)
    return phases, spans, _minus(_union(leaves), called)


def _of_device(
    events: list[dict[str, Any]], axes: dict[str, str]
) -> tuple[Phases, Spans, list[Interval]]:
    launched = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    marks = _marks(events)
    starts = [e["ts"] for e in marks]
    phases: Phases = defaultdict(list)
    spans: Spans = defaultdict(list)
    for e in events:
        if e.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        given = e.get("args", {})
        if e["cat"] == "kernel" and "nccl" in e["name"].lower():
            axis = axes.get(given.get("Process Group Name", ""), "world")
            spans[axis].append((e["ts"], _end(e), 1, _message(given)))
            continue
        # This holds for any launching thread: autograd has its own thread, which knows no phases.
        i = bisect.bisect_right(starts, launched.get(given.get("correlation"), -1)) - 1
        phase = marks[i]["name"].removeprefix("phase ") if i >= 0 else "other"
        phases[phase].append((e["ts"], _end(e)))
    return phases, spans, [span for spans_of in phases.values() for span in spans_of]


def _marks(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the host's phases, one after the other."""
    return [
        e for e in events if e["name"].startswith("phase ") and e.get("cat") == "user_annotation"
    ]


_SIZES = {"Float": 4, "BFloat16": 2, "Half": 2, "Long": 8, "Int": 4, "Double": 8, "Byte": 1}


def _message(given: dict[str, Any]) -> float:
    """Return the bytes that NCCL was given; a float8 or bool element has one byte."""
    return given.get("In msg nelems", 0) * _SIZES.get(given.get("dtype", ""), 1)


def _end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[list[float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [(start, end) for start, end in merged]


def _minus(intervals: list[Interval], others: list[Interval]) -> list[Interval]:
    """Return the parts of disjoint intervals that lie outside all of some others."""
    left, i = [], 0
    for start, end in intervals:
        while i < len(others) and others[i][1] <= start:
            i += 1
        j = i
        while j < len(others) and others[j][0] < end:
            if others[j][0] > start:
                left.append((start, others[j][0]))
            start = max(start, others[j][1])
            j += 1
        if start < end:
            left.append((start, end))
    return left


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)

"""Profile a run's speed and memory. Each part is off unless it is in the DAG."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import torch

from nanigpt.parallel.mesh import Layout
from nanigpt.problems import Fix, Problem, refuse, require_positive
from nanigpt.tags import Unit
from nanigpt.training.collectives import Labels, axes_of_groups
from nanigpt.training.phases import PhaseClock, PhaseTimers
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trace import read_trace, summarize

log = logging.getLogger(__name__)


class _Window:
    """Window of consecutive steps.

    Args:
        start: First step, counted from 1.
        steps: Number of steps.

    Attributes:
        ending: Ending of the names of written files.
    """

    ending: str

    def __init__(
        self,
        *,
        start: Annotated[int, Unit("steps")] = 10,
        steps: Annotated[int, Unit("steps")] = 3,
    ):
        require_positive(start=start, steps=steps)
        self.start = start
        self.steps = steps

    @property
    def last(self) -> int:
        return self.start + self.steps - 1

    def was_written(self, run: RunDirectory) -> bool:
        return any(run.profile.glob(f"{self}*{self.ending}"))

    def __str__(self) -> str:
        return f"steps_{self.start}_to_{self.last}"


class Trace(_Window):
    """Trace of some steps by torch.profiler.

    It writes `profile/steps_A_to_B_rankR.json.gz`, which Perfetto and chrome://tracing show. It
    also writes `profile/steps_A_to_B.txt`, which covers the main rank: the division of its time
    into phases and communication along each mesh axis, and the part of the communication that no
    computation hides. The metrics of the window's last step have these numbers, too:
    `ms_communication_tp` and so on are exposed communication.

    Args:
        start: First step, counted from 1.
        steps: Number of steps.
        record_shapes: Whether to keep the shapes of operators' inputs.
        profile_memory: Whether to keep allocations.
        with_stack: Whether to keep the Python lines that called operators.
        all_ranks: Whether to write a trace of every rank, not only of the main one.
    """

    ending = ".json.gz"

    def __init__(
        self,
        *,
        start: Annotated[int, Unit("steps")] = 10,
        steps: Annotated[int, Unit("steps")] = 3,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        all_ranks: bool = False,
    ):
        super().__init__(start=start, steps=steps)
        self.record_shapes = record_shapes
        self.profile_memory = profile_memory
        self.with_stack = with_stack
        self.all_ranks = all_ranks

    def recording(self, run: RunDirectory, layout: Layout) -> "_Recording":
        return _TraceRecording(self, run, layout)


class MemorySnapshot(_Window):
    """Record of allocated CUDA memory during some steps, with its place and Python lines.

    It writes `profile/steps_A_to_B_rankR.pickle`, for https://pytorch.org/memory_viz, even if a
    step in the window fails, for example when memory runs out.

    Args:
        start: First step, counted from 1.
        steps: Number of steps.
        max_entries: Number of allocations to keep, the latest ones.
    """

    ending = ".pickle"

    def __init__(
        self,
        *,
        start: Annotated[int, Unit("steps")] = 1,
        steps: Annotated[int, Unit("steps")] = 3,
        max_entries: int = 100_000,
    ):
        super().__init__(start=start, steps=steps)
        if max_entries < 1:
            refuse("max_entries", max_entries, "at least 1")
        self.max_entries = max_entries

    def recording(self, run: RunDirectory, layout: Layout) -> "_Recording":
        return _MemoryRecording(self, run, layout)


class Profiling:
    """Set of a run's profilers.

    Args:
        phases: Timers of each step's phases, or None.
        trace: Trace of some steps, or None.
        memory: Record of memory during some steps, or None.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        phases: PhaseTimers | None = None,
        trace: Trace | None = None,
        memory: MemorySnapshot | None = None,
    ):
        self.phases = phases
        self.trace = trace
        self.memory = memory

    def problems(self, steps: int) -> list[Problem]:
        """Return a problem for each window that ends after the last of `steps` steps."""
        return [
            Problem(
                f"{name}.start",
                window.start,
                f"a window of steps={window.steps} that ends by steps={steps} of the run, not at "
                f"step {window.last}",
                component=self,
            )
            for name, window in (("trace", self.trace), ("memory", self.memory))
            if window is not None and window.last > steps
        ]

    def device_problems(self, kind: str) -> list[Problem]:
        """Return a problem for each part that a device of kind `cpu` or `cuda` does not support."""
        if self.memory is None or kind == "cuda":
            return []
        expected = f"None on a {kind}, because the snapshot records CUDA memory"
        return [Problem("memory", self.memory, expected, Fix(self, "memory", None), component=self)]

    @contextlib.contextmanager
    def open(self, run: RunDirectory, layout: Layout, *, step: int = 0) -> Iterator["Profiler"]:
        """Profile the steps after `step` until the context ends; then write the records."""
        windows = [window for window in (self.trace, self.memory) if window is not None]
        for window in windows:
            if window.start <= step and layout.world.is_main and not window.was_written(run):
                log.warning("%s are not profiled: the run goes on after step %d", window, step)
        profiler = Profiler(
            None if self.phases is None else self.phases.clock(layout.world.device),
            [window.recording(run, layout) for window in windows],
        )
        try:
            yield profiler
        finally:
            profiler.close()


class Profiler:
    """Profiler of a run in progress. Without any parts, it does nothing.

    Attributes:
        clock: Clock of phases, or None.
    """

    def __init__(self, clock: PhaseClock | None, recordings: list["_Recording"]):
        self.clock = clock
        self._recordings = recordings
        listeners = [*([clock.enter] if clock else []), *(r.enter for r in recordings)]
        self._listeners = listeners

    def enter(self, phase: str) -> None:
        """Begin a phase of a step."""
        for listener in self._listeners:
            listener(phase)

    def before(self, step: int) -> None:
        """Start the recordings that begin with this step."""
        for recording in self._recordings:
            if recording.window.start == step:
                recording.start()

    def is_due(self, step: int) -> bool:
        """Return whether a recording ends with this step and must be written."""
        return any(r.running and r.window.last == step for r in self._recordings)

    def write(self, step: int) -> dict[str, float]:
        """Write the recordings that end with this step; return numbers for the metrics."""
        found: dict[str, float] = {}
        for recording in self._recordings:
            if recording.running and recording.window.last == step:
                found |= recording.stop(whole=True)
        return found

    def close(self) -> None:
        """Write the recordings that an interruption or an error has cut short."""
        for recording in self._recordings:
            if recording.running:
                recording.stop(whole=False)


class _Recording:
    """Window of a run in progress."""

    def __init__(self, window: Any, run: RunDirectory, layout: Layout):
        self.window = window
        self.running = False
        self.run, self.layout, self.world = run, layout, layout.world

    def start(self) -> None:
        self.running = True

    def enter(self, phase: str) -> None:
        """Begin a phase of a step."""

    def stop(self, *, whole: bool) -> dict[str, float]:
        """Write the recording; `whole` says whether it covers all steps of the window."""
        self.running = False
        return {}

    def file(self, ending: str) -> str:
        self.run.profile.mkdir(parents=True, exist_ok=True)
        return str(self.run.profile / f"{self.window}{ending}")


class _TraceRecording(_Recording):
    def start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        super().start()
        window, device = self.window, self.world.device
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            record_shapes=window.record_shapes,
            profile_memory=window.profile_memory,
            with_stack=window.with_stack,
        )
        self._span: torch.profiler.record_function | None = None
        self._axes = axes_of_groups(self.layout)
        self._profile.start()
        # NCCL's kernels name their process group, but communication over gloo does not.
        labelled = self.world.size > 1 and device.type == "cpu"
        self._labels = Labels(self._axes) if labelled else contextlib.nullcontext()
        self._labels.__enter__()
        self.enter("other")

    def enter(self, phase: str) -> None:
        if not self.running:
            return
        self._leave()
        span = self._span = torch.profiler.record_function(f"phase {phase}")
        span.__enter__()

    def stop(self, *, whole: bool) -> dict[str, float]:
        super().stop(whole=whole)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        self._leave()
        self._labels.__exit__(None, None, None)
        self._profile.stop()
        if not (self.world.is_main or self.window.all_ranks):
            return {}
        path = self.file(f"_rank{self.world.rank}{self.window.ending}")
        self._profile.export_chrome_trace(path)
        log.info("trace of %s: %s", self.window, path)
        if not (self.world.is_main and whole):
            return {}
        summary = summarize(read_trace(path), steps=self.window.steps, axes=self._axes)
        with open(self.file(".txt"), "w") as text:
            text.write(f"{summary}\n")
        log.info("%s", summary)
        return summary.metrics()

    def _leave(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None


class _MemoryRecording(_Recording):
    def start(self) -> None:
        super().start()
        # Record Python's lines only: writing would take minutes if it had to find C++ lines, too.
        torch.cuda.memory._record_memory_history(
            max_entries=self.window.max_entries, stacks="python"
        )

    def stop(self, *, whole: bool) -> dict[str, float]:
        super().stop(whole=whole)
        path = self.file(f"_rank{self.world.rank}{self.window.ending}")
        torch.cuda.memory._dump_snapshot(path)
        torch.cuda.memory._record_memory_history(enabled=None)
        log.info("memory snapshot of %s: %s", self.window, path)
        return {}

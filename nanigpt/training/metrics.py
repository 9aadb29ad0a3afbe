"""Collect and time the numbers of every step, and hand them to trackers."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from nanigpt.errors import UsageError
from nanigpt.parallel.world import World
from nanigpt.problems import first_line, refuse
from nanigpt.tags import Unit
from nanigpt.training.hardware import device_peaks, measured_flops, peak_memory
from nanigpt.training.phases import PhaseClock
from nanigpt.training.trackers.tracker import Row, RunInfo, Tracker


@dataclass(frozen=True)
class Work:
    """Work of one step, over all ranks.

    Attributes:
        unit: Unit of the count: tokens or samples.
        size: Number of units.
        flops: Training FLOPs of one unit, for MFU; None if unknown.
    """

    unit: Literal["tokens", "samples"]
    size: int
    flops: float | None


class Metrics:
    """Collector of every step's numbers. It hands them to trackers every `log_interval` steps.

    In between, losses and norms stay on the device, so that no step waits for the one before.

    Args:
        log_interval: Steps between reads.
        tokens_per_expert: Whether to keep the number of tokens of each expert in each layer, a
            large table.
        peak_flops: FLOP/s of the device that MFU is a fraction of, for any arithmetic. None takes
            the dense bf16 peak of its data sheet, and reports no MFU if the device is unknown;
            `measured` is the speed of a large matrix product when training starts, in float32 on a
            CPU and in bfloat16 on a GPU.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        log_interval: Annotated[int, Unit("steps")] = 10,
        tokens_per_expert: bool = False,
        peak_flops: float | Literal["measured"] | None = None,
    ):
        if log_interval < 1:
            refuse("log_interval", log_interval, "at least 1")
        if isinstance(peak_flops, str) and peak_flops != "measured":
            refuse("peak_flops", peak_flops, "a number, 'measured', or None")
        if isinstance(peak_flops, int | float) and not 0 < peak_flops < float("inf"):
            refuse("peak_flops", peak_flops, "FLOP/s above 0")
        self.log_interval = log_interval
        self.tokens_per_expert = tokens_per_expert
        self.peak_flops = peak_flops

    def open(
        self,
        trackers: Sequence[Tracker],
        info: RunInfo,
        world: World,
        *,
        work: Work,
        clock: PhaseClock | None = None,
    ) -> None:
        """Open the trackers on the main process, and start to time.

        Args:
            work: Work of one step.
            clock: Clock of the steps' phases, if they are timed.
        """
        self._world = world
        self._steps = info.steps
        self._work = work
        self._peak = self._peak_of(world.device)
        self._clock = clock
        self._rows: list[Row] = []
        self._wrong: str | None = None
        self._open: list[Tracker] = []
        with contextlib.ExitStack() as opened:
            for tracker in trackers if world.is_main else ():
                with _named(tracker, "open"):
                    tracker.open(info)
                opened.callback(_close, tracker)
                self._open.append(tracker)
            self._trackers = opened.pop_all()
        self._wait()
        if clock is not None:
            clock.read(1)  # drops the time before the first step
        self._since = time.perf_counter()

    def record(self, row: Row, *, flush: bool = False) -> None:
        """Add the row of one step.

        Args:
            flush: Whether to write the row now, before `log_interval` is over.
        """
        if not self.tokens_per_expert:
            row.pop("tokens_per_expert", None)
        self._rows.append(row)
        step = row["step"]
        if flush or step in (1, self._steps) or step % self.log_interval == 0:
            self.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave work other than training, such as an evaluation, out of the throughput."""
        self._wait()
        paused = time.perf_counter()
        if self._clock is not None:
            self._clock.pause()
        try:
            yield
            self._wait()
        finally:  # after an interruption, too: waiting rows are still written
            if self._clock is not None:
                self._clock.enter("other")
            self._since += time.perf_counter() - paused

    def flush(self) -> None:
        """Write the recorded rows. The speed covers all steps since the last flush."""
        if not self._rows:
            return
        self._wait()
        now = time.perf_counter()
        seconds = now - self._since
        per_second = self._work.size * len(self._rows) / seconds
        speed = {f"{self._work.unit}_per_second": per_second}
        speed["ms_per_step"] = 1000 * seconds / len(self._rows)
        mfu = self._mfu(per_second)
        if mfu is not None and mfu <= 1:
            speed["mfu"] = mfu
        elif mfu is not None:
            self._wrong = self._beyond_peak(per_second, mfu)
        if self._clock is not None:
            speed |= self._clock.read(len(self._rows))
        speed["peak_memory_gib"] = peak_memory(self._world.device) / 2**30
        rows: list[Row] = [{k: _number(v) for k, v in row.items()} | speed for row in self._rows]
        self._rows, self._since = [], now
        for tracker in self._open:
            with _named(tracker, "write"):
                tracker.write([dict(row) for row in rows])

    def check(self) -> None:
        """Refuse an impossible MFU; call this only when no computed result can be lost any more.

        Raises:
            UsageError: MFU was over 100%; the rows are written, without it.
        """
        if self._wrong is not None:
            raise UsageError(self._wrong)

    def close(self) -> None:
        """Write the remaining rows, and close every tracker."""
        with self._trackers:
            self.flush()

    def _peak_of(self, device: torch.device) -> float | None:
        if self.peak_flops == "measured":
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            return measured_flops(device, dtype)
        if self.peak_flops is not None:
            return self.peak_flops
        peaks = device_peaks(device)
        return None if peaks is None else peaks.flops

    def _mfu(self, per_second: float) -> float | None:
        if self._peak is None or self._work.flops is None:
            return None
        return per_second / self._world.size * self._work.flops / self._peak

    def _beyond_peak(self, per_second: float, mfu: float) -> str:
        unit, flops = self._work.unit, self._work.flops or 0.0
        speed = per_second / self._world.size
        source = "metrics.peak_flops" if self.peak_flops is not None else "its data sheet"
        return (
            f"metrics: MFU is {mfu:.1%}, and no device is faster than its peak: {speed:,.0f} "
            f"{unit}/s per device x {flops:.4g} FLOPs per {unit.removesuffix('s')} = "
            f"{speed * flops:.4g} FLOP/s, and the peak of {source} is {self._peak:.4g}. One "
            "of the two is wrong; set metrics.peak_flops to the real peak of the device, and "
            "resume with the same command"
        )

    def _wait(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)


def _number(value: float | torch.Tensor) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _named(tracker: Tracker, method: str) -> Iterator[None]:
    """Name the tracker in an error of its own, which may be any exception."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"trackers: {type(tracker).__name__}.{method} raised {first_line(error)}; fix or "
            "remove it, and resume with the same command"
        ) from error


def _close(tracker: Tracker) -> None:
    with _named(tracker, "close"):
        tracker.close()

"""Numbers of a run: metrics.jsonl, TensorBoard, and a line on the console."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from nanigpt.errors import UsageError
from nanigpt.files import write_atomically
from nanigpt.parallel.world import World
from nanigpt.tags import Unit
from nanigpt.training.console import Console
from nanigpt.training.hardware import device_peaks, measured_flops, peak_memory
from nanigpt.training.phases import PHASES, PIPELINE, PhaseClock
from nanigpt.training.run_directory import RunDirectory

log = logging.getLogger(__name__)


# What a row may have besides `step`; a sweep's objective is one of these.
OF_PHASES = tuple(f"ms_{phase}" for phase in (*PHASES, PIPELINE))
OF_COMMUNICATION = tuple(
    f"ms_communication_{axis}"
    for axis in ("pp", "dp_replicate", "fsdp", "cp", "ep", "tp", "loss", "world")
)
OF_EXPERTS = ("load_imbalance", "router_entropy", "dropped_tokens", "expert_bias_range")
NAMES = (
    *("loss", "multi_token_loss", "grad_norm", "lr", "lr_muon", "tokens"),
    *("val_loss", "val_bits_per_byte"),
    *OF_EXPERTS,
    "compilations",  # graphs compiled so far, where the model is compiled
    *("tokens_per_second", "ms_per_step", "mfu", "peak_memory_gib"),
    *OF_PHASES,
    *OF_COMMUNICATION,
)


class Metrics:
    """Records every step; reads the device and writes only every `log_interval` steps.

    Losses and norms stay on the device between, so that no step waits for the one before.

    Args:
        log_interval: steps between console lines and writes.
        tensorboard: write TensorBoard events too.
        tokens_per_expert: write what each expert of each layer had, which is much to write.
        peak_flops: FLOP/s of the device that MFU is a fraction of, whatever the arithmetic is. None
            takes the dense bf16 peak of its data sheet, and reports no MFU where the device is not
            known; `measured` is the speed of a large matrix product when training starts, in
            float32 on a CPU and in bfloat16 on a GPU.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        log_interval: Annotated[int, Unit("steps")] = 10,
        tensorboard: bool = True,
        tokens_per_expert: bool = False,
        peak_flops: float | Literal["measured"] | None = None,
    ):
        if log_interval < 1:
            raise ValueError(f"log_interval={log_interval}: expected at least 1")
        if isinstance(peak_flops, str) and peak_flops != "measured":
            raise ValueError(f"peak_flops={peak_flops!r}: expected a number, 'measured', or None")
        if isinstance(peak_flops, int | float) and not 0 < peak_flops < float("inf"):
            raise ValueError(f"peak_flops={peak_flops}: expected FLOP/s above 0")
        self.log_interval = log_interval
        self.tensorboard = tensorboard
        self.tokens_per_expert = tokens_per_expert
        self.peak_flops = peak_flops

    def open(
        self,
        run: RunDirectory,
        world: World,
        *,
        step: int,
        steps: int,
        flops: int,
        clock: PhaseClock | None = None,
    ) -> None:
        """Starts after `step`; rows of later steps, from a run that was killed, are dropped.

        Args:
            flops: training FLOPs per token, for MFU.
            clock: of the steps' phases, if they are timed.
        """
        self._world = world
        self._steps = steps
        self._flops = flops
        self._peak = self._peak_of(world.device)
        self._clock = clock
        self._rows: list[dict] = []
        self._tokens = 0
        self._events = None
        self._wrong: str | None = None
        if world.is_main:
            self._open_files(run, step)
        self._wait()
        if clock is not None:
            clock.read(1)  # what was before the first step
        self._since = time.perf_counter()

    def _open_files(self, run: RunDirectory, step: int) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        drop_rows_after(run.metrics, step)
        self._stream = open(run.metrics, "a")
        self.console = Console(step=step, steps=self._steps)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                run.tensorboard, max_queue=self.log_interval, purge_step=step + 1
            )

    def record(self, row: dict[str, float | torch.Tensor], *, tokens: int) -> None:
        """Adds the row of one step, which consumed `tokens` over all ranks."""
        if not self.tokens_per_expert:
            row.pop("tokens_per_expert", None)
        self._rows.append(row)
        self._tokens += tokens
        step = row["step"]
        if step in (1, self._steps) or step % self.log_interval == 0 or "val_loss" in row:
            self.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the throughput what is not training, such as an evaluation."""
        self._wait()
        paused = time.perf_counter()
        if self._clock is not None:
            self._clock.pause()
        try:
            yield
            self._wait()
        finally:  # also of an interrupted one: rows that wait are still written
            if self._clock is not None:
                self._clock.enter("other")
            self._since += time.perf_counter() - paused

    def flush(self) -> None:
        """Writes what was recorded. Speed is that of all steps since the last flush."""
        if not self._rows:
            return
        self._wait()
        now = time.perf_counter()
        seconds = now - self._since
        speed = {"tokens_per_second": self._tokens / seconds}
        speed["ms_per_step"] = 1000 * seconds / len(self._rows)
        mfu = self._mfu(speed["tokens_per_second"])
        if mfu is not None and mfu <= 1:
            speed["mfu"] = mfu
        elif mfu is not None:
            self._wrong = self._beyond_peak(speed["tokens_per_second"], mfu)
        if self._clock is not None:
            speed |= self._clock.read(len(self._rows))
        speed["peak_memory_gib"] = peak_memory(self._world.device) / 2**30
        rows = [{k: _number(v) for k, v in row.items()} | speed for row in self._rows]
        self._rows, self._tokens, self._since = [], 0, now
        if self._world.is_main:
            self._write(rows)

    def check(self) -> None:
        """Called when nothing that was computed can be lost any more.

        Raises:
            UsageError: MFU was over 100%; the rows are written, without it.
        """
        if self._wrong is not None:
            raise UsageError(self._wrong)

    def _write(self, rows: list[dict]) -> None:
        self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self._stream.flush()
        if self._events is not None:
            for row in rows:
                self._events.file_writer.add_summary(_summary(row), row["step"])
        self.console.step_line(rows[-1])

    def close(self) -> None:
        self.flush()
        if self._world.is_main:
            self._stream.close()
            self.console.close()
            if self._events is not None:
                self._events.close()

    def _peak_of(self, device: torch.device) -> float | None:
        if self.peak_flops == "measured":
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            return measured_flops(device, dtype)
        if self.peak_flops is not None:
            return self.peak_flops
        peaks = device_peaks(device)
        return None if peaks is None else peaks.flops

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self._peak is None:
            return None
        return tokens_per_second / self._world.size * self._flops / self._peak

    def _beyond_peak(self, tokens_per_second: float, mfu: float) -> str:
        speed = tokens_per_second / self._world.size
        source = "metrics.peak_flops" if self.peak_flops is not None else "its data sheet"
        return (
            f"metrics: MFU is {mfu:.1%}, and no device is faster than its peak: {speed:,.0f} "
            f"tokens/s per device x {self._flops:.4g} FLOPs per token = "
            f"{speed * self._flops:.4g} FLOP/s, and the peak of {source} is {self._peak:.4g}. One "
            "of the two is wrong; set metrics.peak_flops to what the device can do, and go on with "
            "the same command"
        )

    def _wait(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps the whole rows of `metrics.jsonl` up to `step`."""
    if not path.exists():
        return
    kept, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            # The last line is cut where a run was killed while writing; no other should be.
            if number < len(lines):
                log.warning("%s: line %d is no row of a step; dropped", path, number)
    write_atomically(path, "".join(kept))


def _summary(row: dict[str, float | list]) -> Any:
    """A step's numbers as one event of TensorBoard: one for each number costs several times as
    much, as the file's checksums are computed in Python."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    names = row.keys() - {"step", "tokens_per_expert"}
    return Summary(value=[Summary.Value(tag=name, simple_value=row[name]) for name in names])


def _number(value: float | torch.Tensor) -> float | list:
    return value.tolist() if isinstance(value, torch.Tensor) else value

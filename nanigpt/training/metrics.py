"""Numbers of a run: metrics.jsonl, TensorBoard, and a line on the console."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch

from nanigpt.files import write_atomically
from nanigpt.parallel.world import World
from nanigpt.tags import Unit
from nanigpt.training.console import Console
from nanigpt.training.hardware import peak_flops, peak_memory
from nanigpt.training.run_directory import RunDirectory

log = logging.getLogger(__name__)


# What a row may have besides `step`; a sweep's objective is one of these.
OF_EXPERTS = ("load_imbalance", "router_entropy", "dropped_tokens", "expert_bias_range")
NAMES = (
    *("loss", "multi_token_loss", "grad_norm", "lr", "lr_muon", "tokens"),
    *("val_loss", "val_bits_per_byte"),
    *OF_EXPERTS,
    *("tokens_per_second", "ms_per_step", "mfu", "peak_memory_gib"),
)


class Metrics:
    """Records every step; reads the device and writes only every `log_interval` steps.

    Losses and norms stay on the device between, so that no step waits for the one before.

    Args:
        log_interval: steps between console lines and writes.
        tensorboard: write TensorBoard events too.
        tokens_per_expert: write what each expert of each layer had, which is much to write.
    """

    def __init__(
        self,
        *,
        log_interval: Annotated[int, Unit("steps")] = 10,
        tensorboard: bool = True,
        tokens_per_expert: bool = False,
    ):
        if log_interval < 1:
            raise ValueError(f"log_interval={log_interval}: expected at least 1")
        self.log_interval = log_interval
        self.tensorboard = tensorboard
        self.tokens_per_expert = tokens_per_expert

    def open(self, run: RunDirectory, world: World, *, step: int, steps: int, flops: int) -> None:
        """Starts after `step`; rows of later steps, from a run that was killed, are dropped.

        Args:
            flops: training FLOPs per token, for MFU.
        """
        self._world = world
        self._steps = steps
        self._flops = flops
        self._peak = peak_flops(world.device)
        self._rows: list[dict] = []
        self._since = time.perf_counter()
        self._tokens = 0
        self._events = None
        if not world.is_main:
            return
        run.path.mkdir(parents=True, exist_ok=True)
        drop_rows_after(run.metrics, step)
        self._stream = open(run.metrics, "a")
        self.console = Console(step=step, steps=steps)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(run.tensorboard, purge_step=step + 1)

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
        yield
        self._wait()
        self._since += time.perf_counter() - paused

    def flush(self) -> None:
        """Writes what was recorded. Speed is that of all steps since the last flush."""
        if not self._rows:
            return
        self._wait()
        seconds = time.perf_counter() - self._since
        speed = {"tokens_per_second": self._tokens / seconds}
        speed["ms_per_step"] = 1000 * seconds / len(self._rows)
        if self._peak is not None:
            speed["mfu"] = speed["tokens_per_second"] * self._flops / self._world.size / self._peak
        speed["peak_memory_gib"] = peak_memory(self._world.device) / 2**30
        rows = [{k: _number(v) for k, v in row.items()} | speed for row in self._rows]
        self._rows, self._tokens, self._since = [], 0, time.perf_counter()
        if not self._world.is_main:
            return
        self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self._stream.flush()
        if self._events is not None:
            for row in rows:
                for name in row.keys() - {"step", "tokens_per_expert"}:
                    self._events.add_scalar(name, row[name], row["step"])
        self.console.step_line(rows[-1])

    def close(self) -> None:
        self.flush()
        if self._world.is_main:
            self._stream.close()
            self.console.close()
            if self._events is not None:
                self._events.close()

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


def _number(value: float | torch.Tensor) -> float | list:
    return value.tolist() if isinstance(value, torch.Tensor) else value

"""Show a run to a person: a progress bar on a terminal, plain lines in a log."""

import os
import sys
import time
from collections.abc import Sequence

from nanigpt.training.trackers.tracker import Row, RunInfo


class Console:
    """Tracker that prints a line for the last row of each write, and the time left."""

    def open(self, info: RunInfo, /) -> None:
        self._info = info
        self._started = time.monotonic()
        self._progress = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TimeRemainingColumn(),
                transient=True,
            )
            self._task = self._progress.add_task("train", total=info.steps, completed=info.step)
            self._progress.start()
        for line in info.summary:
            self._print(line)

    def write(self, rows: Sequence[Row], /) -> None:
        row = rows[-1]
        step = int(row["step"])
        steps = self._info.steps
        left = (time.monotonic() - self._started) / (step - self._info.step) * (steps - step)
        head = f"step {step:>{len(str(steps))}}/{steps}"
        self._print("  ".join([head, *_numbers(row, self._info), f"ETA {_duration(left)}"]))
        for name in self._info.evaluations:
            of = [
                f"{key.removeprefix(f'{name}_').replace('_', ' ')} {value:.4f}"
                for key, value in row.items()
                if key.startswith(f"{name}_")
            ]
            if of:
                label = "validation" if name == "val" else name
                self._print("  ".join([head, f"{label} {of[0]}", *of[1:]]))
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has left; the run goes on without it
            sys.stdout = open(os.devnull, "w")


def _numbers(row: Row, info: RunInfo) -> list[str]:
    """Format losses, gradient norm, learning rate, speed and memory, if the row has them."""
    formats = {name: f"{name.replace('_', ' ')} {{:.4f}}" for name in info.losses}
    formats |= {
        "grad_norm": "grad norm {:.3f}",
        "lr": "lr {:.2e}",
        "load_imbalance": "imbalance {:.2f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "samples_per_second": "{:,.0f} samples/s",
        "ms_per_step": "{:.0f} ms/step",
        "mfu": "MFU {:.1%}",
        "peak_memory_gib": "peak {:.2f} GiB",
    }
    return [text.format(row[name]) for name, text in formats.items() if name in row]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What a person sees of a run: a progress bar on a terminal, plain lines in a log."""

import os
import sys
import time


class Console:
    """Prints one line per logged step; knows how much time is left."""

    def __init__(self, *, step: int, steps: int):
        self._first = step
        self._steps = steps
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
            self._task = self._progress.add_task("train", total=steps, completed=step)
            self._progress.start()

    def step_line(self, row: dict[str, float]) -> None:
        """One logged step: progress, loss, gradient norm, learning rate, speed, memory, ETA."""
        step = int(row["step"])
        done = step - self._first
        left = (time.monotonic() - self._started) / done * (self._steps - step)
        parts = [
            f"step {step:>{len(str(self._steps))}}/{self._steps}",
            f"loss {row['loss']:.4f}",
            *(
                [f"multi-token loss {row['multi_token_loss']:.4f}"]
                if "multi_token_loss" in row
                else []
            ),
            f"grad norm {row['grad_norm']:.3f}",
            f"lr {row['lr']:.2e}",
            *([f"imbalance {row['load_imbalance']:.2f}"] if "load_imbalance" in row else []),
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{row['ms_per_step']:.0f} ms/step",
            *([f"MFU {row['mfu']:.1%}"] if "mfu" in row else []),
            f"peak {row['peak_memory_gib']:.2f} GiB",
            f"ETA {_duration(left)}",
        ]
        self.print("  ".join(parts))
        if "val_loss" in row:
            self.print(
                f"step {step:>{len(str(self._steps))}}/{self._steps}  "
                f"validation loss {row['val_loss']:.4f}  "
                f"bits per byte {row['val_bits_per_byte']:.4f}"
            )
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has left; the run goes on without it
            sys.stdout = open(os.devnull, "w")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

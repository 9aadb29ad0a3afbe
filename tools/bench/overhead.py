"""Measure the CPU time that a framework adds to a step of a few milliseconds.

    ./tools/run python tools/bench/overhead.py

Ten steps of the framework and ten steps of a bare loop over the same modules alternate within one
process (loops.py). The overhead is smaller than the differences between two processes, but larger
than those between neighbouring blocks of one process. Each block of the framework is compared with
the mean of the bare blocks before and after it.
"""

import statistics
import time
from collections.abc import Iterator

import harness
import loops

BLOCK = 10  # steps
DROPPED = 2  # blocks


class Alternation:
    """CPU milliseconds of a framework's steps, and of bare steps between them."""

    def __init__(self, bare: Iterator):
        self.bare = bare
        next(bare)  # makes its model before garbage collection freezes all objects
        self.steps = 0
        self.framework_ms: list[float] = []
        self.bare_ms: list[float] = []
        self.start = None

    def step(self, loss=None) -> None:
        """Note a step of the framework, and run bare steps after each block."""
        self.steps += 1
        # The last steps are left out, since the bare loop would run out of batches.
        if self.steps % BLOCK or self.steps > loops.STEPS["small"] - BLOCK:
            return
        end = time.process_time()
        if self.start is not None:
            self.framework_ms.append(1000 * (end - self.start) / BLOCK)
        for _ in range(BLOCK):
            next(self.bare)
        self.start = time.process_time()
        self.bare_ms.append(1000 * (self.start - end) / BLOCK)

    def figures(self) -> harness.Figures:
        framework, bare = self.framework_ms[DROPPED:], self.bare_ms[DROPPED:]
        more = [t - (a + b) / 2 for t, a, b in zip(framework, bare, bare[1:], strict=False)]
        lower, median, upper = statistics.quantiles(more)
        return {
            "ms": statistics.median(framework),
            "bare ms": statistics.median(bare),
            "more ms": median,
            "lower quartile": lower,
            "upper quartile": upper,
        }


def ours() -> harness.Figures:
    both = Alternation(loops.bare("small", own_model=True))
    loops.ours("small", both.step)
    return both.figures()


def trainer_of_transformers() -> harness.Figures:
    both = Alternation(loops.bare("small", own_model=False))
    loops.trainer_of_transformers("small", both.step, lambda loss: None)
    return both.figures()


VARIANTS = {"ours": ours, "transformers' Trainer": trainer_of_transformers}


def report(repetitions: int) -> dict:
    found = loops.measure(__file__, VARIANTS, "small", repetitions=repetitions)
    harness.heading("Around a small model, beside the same modules in a bare loop", repetitions)
    for name, of in found.items():
        quartiles = f"{of['lower quartile']:.2f} to {of['upper quartile']:.2f}"
        print(
            f"  {name:<24} {of['more ms']:5.2f} ms CPU more per step ({quartiles} between "
            f"quartiles of blocks); bare {of['bare ms']:.2f} ms"
        )
    return {"overhead": found}


if __name__ == "__main__":
    harness.main(__file__, VARIANTS, report)

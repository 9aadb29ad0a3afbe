"""Measure a training step, compared with a bare PyTorch loop and the Trainer of transformers.

    ./tools/run python tools/bench/step.py

All train the same Llama (6 M parameters, 8 x 256 tokens, float32) from the same weights on the same
batches with AdamW and clipped gradients (loops.py). The script prints CPU milliseconds of a step
for the whole process, without the first steps.
"""

import time

import harness
import loops


class Clock:
    """CPU milliseconds of the steps after the first ones."""

    def __init__(self):
        self.left = loops.WARM_UP + loops.STEPS["large"]
        self.steps = 0
        self.losses = []

    def step(self, loss=None) -> None:
        """Note the end of a step; its loss may be a tensor."""
        self.steps += 1
        if loss is not None and len(self.losses) < loops.LOGGED:
            self.losses.append(loss)
        if self.steps == loops.WARM_UP:
            self.start = time.process_time(), time.perf_counter()
        if self.steps == self.left:
            now = time.process_time(), time.perf_counter()
            self.cpu, self.wall = (1000 * (b - a) for a, b in zip(self.start, now, strict=True))

    def figures(self) -> harness.Figures:
        n, loss = self.left - loops.WARM_UP, sum(map(float, self.losses)) / len(self.losses)
        return {"ms": self.cpu / n, "ms of wall": self.wall / n, "loss": loss}


def ours() -> harness.Figures:
    clock = Clock()
    loops.ours("large", clock.step)
    return clock.figures()


def bare() -> harness.Figures:
    clock = Clock()
    for loss in loops.bare("large", own_model=False):
        clock.step(loss)
        if clock.steps == clock.left:
            break
    return clock.figures()


def trainer_of_transformers() -> harness.Figures:
    clock = Clock()
    loops.trainer_of_transformers("large", clock.step, clock.losses.append)
    return clock.figures()


VARIANTS = {
    "ours": ours,
    "bare loop": bare,
    "transformers' Trainer": trainer_of_transformers,
}


def report(repetitions: int) -> dict:
    found = loops.measure(__file__, VARIANTS, "large", repetitions=repetitions)
    harness.heading("A step: Llama of 6 M parameters, 8 x 256 tokens", repetitions)
    base = found["bare loop"]["ms"]
    for name, of in found.items():
        ratio, loss = of["ms"] / base, of["loss"]
        print(f"  {name:<24} {of['ms']:8.1f} ms CPU  {ratio:5.3f} x bare loop  (loss {loss:.3f})")
    return {"step": found}


if __name__ == "__main__":
    harness.main(__file__, VARIANTS, report)

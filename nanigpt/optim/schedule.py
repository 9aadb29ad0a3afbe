"""Learning rate schedules: pure functions of the step.

`schedule(step, steps)` returns the factor of the peak learning rate in optimizer step `step` of
`steps`, counted from 0. All schedules warm up linearly from `1 / warmup_steps`, and then differ.
"""

import abc
import math
import numbers
from typing import Annotated, Protocol

from nanigpt.problems import first_line, refuse, show
from nanigpt.tags import Unit


class LearningRateSchedule(Protocol):
    """A learning rate schedule: a class, or a function."""

    def __call__(self, step: int, steps: int, /) -> float:
        """Return the factor of the peak learning rate in step `step` of `steps`, from 0."""
        ...


def factor(schedule: LearningRateSchedule, step: int, steps: int) -> float:
    """Return the factor of a step.

    Raises:
        ComponentError: The schedule, which may be the user's, raises an error, or returns no finite
            number of at least 0.
    """
    expected = f"a finite number, 0 or more, for step {step} of {steps}"
    try:
        found = schedule(step, steps)
    except Exception as error:  # a user's function may raise anything
        refuse("schedule", ..., f"{expected}, but it raised {first_line(error)}")
    if not isinstance(found, numbers.Real) or not 0 <= found < math.inf:
        refuse("schedule", ..., f"{expected}, not {show(found)}")
    return found


class Schedule(abc.ABC):
    """A linear warm-up, followed by a decay over the remaining steps.

    The last step has the factor `final`, unless that is 0: a step of learning rate 0 would change
    nothing, so a decay to 0 ends one step after the last.

    Args:
        warmup_steps: Steps until the peak. A number below 1 is a fraction of all steps, rounded
            down to whole steps.
        final: Factor that the decay ends at.
    """

    def __init__(
        self, *, warmup_steps: Annotated[int | float, Unit("steps")] = 0, final: float = 0.1
    ):
        if warmup_steps < 0 or (warmup_steps > 1 and warmup_steps % 1):
            expected = "a whole number of steps, or a fraction of all steps below 1"
            refuse("warmup_steps", warmup_steps, expected)
        if not 0 <= final <= 1:
            refuse("final", final, "a fraction of the peak, 0 to 1")
        self.warmup_steps = warmup_steps
        self.final = final

    def __call__(self, step: int, steps: int) -> float:
        warmup_steps = self.warmup(steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        # The step after warm-up is still at the peak.
        end = steps - 1 if self.final else steps
        progress = (step - warmup_steps) / max(end - warmup_steps, 1)
        return self.final + (1 - self.final) * self.decay(min(progress, 1.0))

    def warmup(self, steps: int) -> int:
        """Return the number of warm-up steps of a run."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        # A fraction made of whole numbers gives them back, also where the product is 19.999...
        return int(self.warmup_steps * steps + 1e-6)

    @abc.abstractmethod
    def decay(self, progress: float) -> float:
        """Map progress 0 (end of warm-up) to 1, and progress 1 (end of the decay) to 0."""


class Cosine(Schedule):
    """Half a cosine wave from the peak to `final` (Loshchilov and Hutter, 2017)."""

    def decay(self, progress: float) -> float:
        """Return half a cosine wave."""
        return 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from the peak to `final`."""

    def decay(self, progress: float) -> float:
        """Return a straight line."""
        return 1 - progress


class WarmupStableDecay(Schedule):
    """The peak, then a straight line over the last part of the steps after warm-up.

    The constant part may have any number of steps, so a run can be extended (Hu et al., 2024).

    Args:
        warmup_steps: As in `Schedule`.
        final: Factor of the last step.
        decay_fraction: Share of the steps after warm-up in which the factor falls.
    """

    def __init__(
        self,
        *,
        warmup_steps: Annotated[int | float, Unit("steps")] = 0,
        final: float = 0.0,
        decay_fraction: float = 0.2,
    ):
        super().__init__(warmup_steps=warmup_steps, final=final)
        if not 0 < decay_fraction <= 1:
            refuse("decay_fraction", decay_fraction, "more than 0, at most 1")
        self.decay_fraction = decay_fraction

    def decay(self, progress: float) -> float:
        """Return 1, then a straight line."""
        return min((1 - progress) / self.decay_fraction, 1.0)

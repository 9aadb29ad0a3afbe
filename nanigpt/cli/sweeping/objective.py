"""The number that a sweep compares trials by.

Any number in a row of metrics.jsonl can be it. A name that no row can have is refused before the
first trial. Evaluations and tasks of a user's own may have any numbers, so their prefix is enough.
"""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from nanigpt.config.compose.call import Call
from nanigpt.errors import UnknownName, UsageError
from nanigpt.optim.groups import learning_rates
from nanigpt.tasks.task import Task
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.trackers.json_lines import JsonLines
from nanigpt.training.trainer import Trainer

# What the trainer adds to every row. Further names begin with a prefix of `_OPEN`.
_ALWAYS = ("grad_norm", "ms_per_step", "peak_memory_gib")
_OF_EXPERTS = ("load_imbalance", "router_entropy", "dropped_tokens", "expert_bias_range")
_OPEN = ("ms_", "mfu", "compilations")


@dataclass(frozen=True)
class Objective:
    """A metric, and how its values become the one number of a trial.

    Attributes:
        name: Name of the metric.
        goal: `min` or `max`.
        over: `last`, `best`, or `mean(N)` of the last N values.
    """

    name: str = "val_loss"
    goal: str = "min"
    over: str = "last"

    def __post_init__(self):
        self._window()

    @property
    def text(self) -> str:
        """The name as the heading of a column, such as `best val_loss`."""
        return self.name if self.over == "last" else f"{self.over} {self.name}"

    @property
    def sign(self) -> int:
        """1 if smaller is better, else -1."""
        return 1 if self.goal == "min" else -1

    def value(self, curve: dict[int, float]) -> float | None:
        """Return the number of a trial from the metric by step, or None if there is none yet."""
        values = list(curve.values())
        if not values:
            return None
        if self.over == "best":
            finite = [v for v in values if math.isfinite(v)] or values
            return min(finite) if self.goal == "min" else max(finite)
        window = values[-self._window() :]
        return sum(window) / len(window)

    def step(self, curve: dict[int, float]) -> int:
        """Return the step of the best value, or that of the last one."""
        if self.over != "best":
            return max(curve, default=0)
        value = self.value(curve)
        return next(
            (step for step, found in curve.items() if found == value), max(curve, default=0)
        )

    def _window(self) -> int:
        if self.over in ("last", "best"):
            return 1
        try:
            call = Call.parse(self.over)
            if call.name == "mean":
                return call.apply(_mean)
        except UsageError as error:
            raise UsageError(f"--objective_over={self.over}: {error}") from error
        raise UsageError(f"--objective_over={self.over}: expected last, best or mean(N)")


def _mean(n: int) -> int:
    if n < 1:
        raise UsageError("expected at least 1 value")
    return n


def require_recorded(objective: Objective, trainer: Trainer) -> None:
    """Refuse an objective that no row of this run will have.

    Raises:
        UnknownName: No part of the run records a number with this name.
        UsageError: The run writes no metrics.jsonl.
    """
    if not any(isinstance(tracker, JsonLines) for tracker in trainer.trackers):
        raise UsageError(
            "trackers: a sweep compares runs by metrics.jsonl; expected a JsonLines among them"
        )
    names, prefixes = recorded(trainer)
    if objective.name not in names and not objective.name.startswith(prefixes):
        problem = f"--objective={objective.name}: not among the metrics"
        raise UnknownName(problem, objective.name, names)


def recorded(trainer: Trainer) -> tuple[list[str], tuple[str, ...]]:
    """Return the names of a run's metrics, and prefixes behind which any name may stand."""
    names, prefixes = list(trainer.task.losses(trainer.model)), list(_OPEN)
    for prefix, evaluation in trainer.evaluations.items():
        known = getattr(type(evaluation), "run", None) is Evaluation.run
        measures = _measures(trainer) if known else None
        names += [f"{prefix}_{measure}" for measure in measures or ()]
        prefixes += [f"{prefix}_"] if measures is None else []
    unit = "samples" if trainer.sequence_length is None else "tokens"
    rates = learning_rates(trainer.optimizer(trainer.model.named_parameters()))
    names += [*_ALWAYS, f"{unit}_per_second", unit, "step", *rates]
    if any(hasattr(module, "n_experts") for module in trainer.model.modules()):
        names += _OF_EXPERTS
    return names, tuple(prefixes)


def _measures(trainer: Trainer) -> list[str] | None:
    """Return the names of the numbers that a task computes on held-out samples, if it says them."""
    if hasattr(trainer.task, "measures"):
        return list(trainer.task.measures)
    own = getattr(type(trainer.task), "evaluate", None) is not Task.evaluate
    return None if own else list(trainer.task.losses(trainer.model))


def pruning_advice(objective: Objective, trainer: Trainer, *, after: int) -> str | None:
    """Return a message if the objective comes too late to prune any trial, else None.

    Args:
        objective: The objective.
        trainer: The run.
        after: Number of steps before which no trial is pruned.
    """
    prefixes = [name for name in trainer.evaluations if objective.name.startswith(f"{name}_")]
    if not prefixes:
        return None  # every step has it
    name, steps = max(prefixes, key=len), trainer.steps
    evaluation = trainer.evaluations[name]
    due: Callable[[int], bool] = lambda step: evaluation.is_due(step, steps)  # noqa: E731
    if any(due(step) for step in range(max(after, 1), steps)):
        return None
    first = next(step for step in range(1, steps + 1) if due(step) or step == steps)
    told = (
        f"--method=tpe will prune no trial: trials are compared between steps {after} and {steps}, "
        f"and {objective.name} is recorded "
        + (f"first at step {first}" if first >= after else "not between them")
    )
    fitting = [n for n in (steps // 10, steps // 40, 1) if n and (steps - 1) // n * n >= after]
    if not fitting:
        return f"{told}\n  try: --prune_after=0.25"
    if not isinstance(evaluation, Evaluation):
        return f"{told}; evaluate it more often, or end no trial early with --prune_after=1"
    flag = f"--config=set:evaluations[{name}].interval={fitting[0]}"
    return f"{told}\n  try: {shlex.quote(flag)}"

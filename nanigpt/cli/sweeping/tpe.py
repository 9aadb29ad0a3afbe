"""A tree-structured Parzen estimator with median pruning, by Optuna.

(Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization".) All results are functions of
the trials so far, which are on disk as runs. So a killed search continues as if nothing had
happened, and trials of another method inform it, too. A storage of Optuna's would be a second
record of the same facts: it does not allow that a list gets more values, and after a kill it has
trials that run although nothing runs.
"""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanigpt.cli.sweeping.objective import Objective
from nanigpt.config.compose.space import Axis, Integers, LogUniform, Point
from nanigpt.config.values import parse_value


@dataclass(frozen=True)
class Observation:
    """The known facts of a trial.

    Attributes:
        values: Text of the value on each axis.
        curve: Objective by step.
        state: `complete`, `pruned`, `running` or `fail`.
    """

    values: dict[str, str]
    curve: dict[int, float] = field(default_factory=dict)
    state: str = "running"


@dataclass(frozen=True)
class Search:
    """A search for the best values.

    Args:
        axes: The axes.
        objective: The number to optimize.
        seed: Seed of the estimator.
        startup: Number of trials that are drawn at random before the estimator takes over, and that
            must be complete before any trial is pruned.
        prune_after: Fraction of a trial's steps before which it is not pruned; 1 prunes none.
    """

    axes: Sequence[Axis]
    objective: Objective
    seed: int
    startup: int
    prune_after: float

    def suggest(self, observations: list[Observation], *, attempt: int) -> Point:
        """Suggest the point of the next trial; each attempt gives another one."""
        import optuna

        stream = f"{self.seed}/{len(observations)}/{attempt}".encode()
        seed = int.from_bytes(hashlib.blake2b(stream, digest_size=4).digest(), "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self.startup, constant_liar=True
            )
        asked = self._study(observations, sampler).ask()
        point: Point = {}
        for axis in self.axes:
            if axis.exists(point):
                point |= axis.row(_suggest(asked, axis))
        return point

    def is_hopeless(
        self, observations: list[Observation], running: Observation, *, steps: int
    ) -> bool:
        """Return whether a running trial has diverged, or is worse than the median.

        The median is that of complete trials at the same step.

        Args:
            observations: The other trials.
            running: The trial.
            steps: Number of its steps.
        """
        import optuna

        if not all(map(math.isfinite, running.curve.values())):
            return True
        if self.prune_after >= 1:
            return False
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=self.startup, n_warmup_steps=round(self.prune_after * steps)
        )
        study = self._study(observations, None)
        return pruner.prune(study, self._frozen(running))

    def covers(self, values: dict[str, str]) -> bool:
        """Return whether a trial with these values lies within the axes."""
        return self._parameters(values) is not None

    def _study(self, observations: list[Observation], sampler: Any) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = optuna.study.StudyDirection
        direction = directions.MINIMIZE if self.objective.goal == "min" else directions.MAXIMIZE
        study = optuna.create_study(direction=direction, sampler=sampler)
        study.add_trials([self._frozen(o) for o in observations])
        return study

    def _frozen(self, observation: Observation) -> Any:
        import optuna

        value = self.objective.value(observation.curve)
        state = observation.state
        if state == "complete" and (value is None or not math.isfinite(value)):
            state = "pruned"  # a complete trial needs a number; this one ranks last
        parameters = self._parameters(observation.values) or {}
        by_name = {str(axis): axis for axis in self.axes}
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[state.upper()],
            value=value if state == "complete" else None,
            params=parameters,
            distributions={name: _distribution(by_name[name]) for name in parameters},
            intermediate_values=observation.curve,
        )

    def _parameters(self, values: dict[str, str]) -> dict[str, Any] | None:
        """Return Optuna's parameter of each axis, or None if the axes do not have these values."""
        parameters: dict[str, Any] = {}
        met: set[str] = set()
        for axis in self.axes:
            if not axis.exists(values):
                continue
            if not values.keys() >= set(axis.keys):
                return None
            met |= set(axis.keys)
            parameter = _parameter(axis, axis.value(values))
            if parameter is None:
                return None
            parameters[str(axis)] = parameter
        return parameters if met == values.keys() else None


def _distribution(axis: Axis) -> Any:
    """Return Optuna's distribution of an axis: for a list, that of its indices."""
    from optuna import distributions

    space = axis.space
    if isinstance(space, tuple):
        return distributions.CategoricalDistribution(tuple(range(len(space))))
    if isinstance(space, Integers):
        return distributions.IntDistribution(space.low, space.high)
    return distributions.FloatDistribution(space.low, space.high, log=isinstance(space, LogUniform))


def _suggest(asked: Any, axis: Axis) -> Any:
    """Return a value of an axis, as Optuna's trial suggests it."""
    name, space = str(axis), axis.space
    if isinstance(space, tuple):
        return space[asked.suggest_categorical(name, list(range(len(space))))]
    if isinstance(space, Integers):
        return asked.suggest_int(name, space.low, space.high)
    is_log = isinstance(space, LogUniform)
    return space.rounded(asked.suggest_float(name, space.low, space.high, log=is_log))


def _parameter(axis: Axis, value: Any) -> Any:
    """Return Optuna's parameter for a value of an axis, or None if the axis does not have it."""
    space = axis.space
    if isinstance(space, tuple):
        return space.index(value) if value in space else None
    try:
        number = parse_value(value, int if isinstance(space, Integers) else float)
    except ValueError:  # an earlier list had a text, and the axis is now a range of numbers
        return None
    return number if space.low <= number <= space.high else None

"""A tree-structured Parzen estimator with median pruning, by Optuna.

(Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization".) All results are functions of
the trials so far, which are on disk. So a killed search continues as if nothing had happened, and
trials of another method inform it, too.
"""

import hashlib
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from nanigpt.config.compose.sweep import Integers, LogUniform, Space, Uniform
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
        axes: Values or ranges of each `tag:TAG` or `set:PATH`.
        goal: `min` or `max`.
        seed: Seed of the estimator.
        startup: Number of trials that are drawn at random before the estimator takes over, and that
            must be complete before any trial is pruned.
        prune_after: Number of steps before which no trial is pruned.
    """

    axes: dict[str, Space]
    goal: str
    seed: int
    startup: int
    prune_after: int

    def suggest(self, observations: list[Observation], *, attempt: int) -> dict[str, str]:
        """Suggest the text of each axis for the next trial; each attempt gives another one."""
        import optuna

        stream = f"{self.seed}/{len(observations)}/{attempt}".encode()
        seed = int.from_bytes(hashlib.blake2b(stream, digest_size=4).digest(), "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self.startup, constant_liar=True
            )
        asked = self._study(observations, sampler).ask(self._distributions())
        return {key: self._text(key, value) for key, value in asked.params.items()}

    def is_hopeless(self, observations: list[Observation], running: Observation) -> bool:
        """Return whether a running trial has diverged, or is worse than the median.

        The median is that of complete trials at the same step.
        """
        import optuna

        if not all(map(math.isfinite, running.curve.values())):
            return True
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=self.startup, n_warmup_steps=self.prune_after
        )
        study = self._study(observations, None)
        return pruner.prune(study, self._frozen(running))

    def covers(self, values: dict[str, str]) -> bool:
        """Return whether a trial with these values lies within the axes."""
        if values.keys() != self.axes.keys():
            return False
        try:
            parameters = self._parameters(values)
        except ValueError:  # an earlier list had a text, and the axis is now a range of numbers
            return False
        return all(
            value in space if isinstance(space, tuple) else space.low <= value <= space.high
            for value, space in zip(parameters.values(), self.axes.values(), strict=True)
        )

    def _study(self, observations: list[Observation], sampler: Any) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = optuna.study.StudyDirection
        direction = directions.MINIMIZE if self.goal == "min" else directions.MAXIMIZE
        study = optuna.create_study(direction=direction, sampler=sampler)
        study.add_trials([self._frozen(o) for o in observations])
        return study

    def _frozen(self, observation: Observation) -> Any:
        import optuna

        last = list(observation.curve.values())[-1:]
        state = observation.state
        if state == "complete" and not (last and math.isfinite(last[0])):
            state = "pruned"  # a complete trial needs a number; this one ranks last
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[state.upper()],
            value=last[0] if state == "complete" else None,
            params=self._parameters(observation.values),
            distributions=self._distributions(),
            intermediate_values=observation.curve,
        )

    def _distributions(self) -> dict[str, Any]:
        from optuna import distributions

        def of(space: Space) -> Any:
            if isinstance(space, tuple):
                return distributions.CategoricalDistribution(space)
            if isinstance(space, Integers):
                return distributions.IntDistribution(space.low, space.high)
            return distributions.FloatDistribution(
                space.low, space.high, log=isinstance(space, LogUniform)
            )

        return {key: of(space) for key, space in self.axes.items()}

    def _parameters(self, values: dict[str, str]) -> dict[str, Any]:
        """Return the value on each axis, or raise ValueError if a range needs a number."""
        return {
            key: values[key]
            if isinstance(space, tuple)
            else parse_value(values[key], int if isinstance(space, Integers) else float)
            for key, space in self.axes.items()
        }

    def _text(self, key: str, value: Any) -> str:
        space = self.axes[key]
        return repr(space.rounded(value)) if isinstance(space, Uniform) else str(value)

"""The trials of a sweep, from its axes: composed and checked before anything is written."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nanigpt.cli.sweeping.directory import Trial, directives
from nanigpt.cli.sweeping.objective import Objective, require_recorded
from nanigpt.cli.trainer import checked_trainer
from nanigpt.config.compose.axes import Axes, axis_label
from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.space import Point, extremes, points
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.errors import UsageError
from nanigpt.training.trainer import Trainer

_SHOWN = 10  # problems


@dataclass
class Plan:
    """What a sweep varies, and how its trials are made.

    Attributes:
        base: Directives of all trials.
        axes: The axes.
        method: `grid`, `random` or `tpe`.
        n: Number of trials, or None for a grid.
        seed: Seed of random draws.
        ranks: Number of processes of each trial.
        objective: The number that trials are compared by.
    """

    base: list[str]
    axes: Axes
    method: str
    n: int | None
    seed: int
    ranks: int
    objective: Objective
    _flops: dict[tuple[str, int], float] = field(default_factory=dict)

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials of a grid or of random draws, each checked.

        The trials of a TPE search are not known yet. For it, the ends of its ranges are checked.

        Raises:
            UsageError: Some trials cannot be trained. The message lists the problems.
        """
        tpe = self.method == "tpe"
        axes = self.axes.axes
        chosen = extremes(axes) if tpe else points(axes, trials=self.n, seed=self.seed)
        found = self._composed(chosen)
        return [] if tpe else found

    @cached_property
    def example(self) -> Trainer:
        """The run that has the first value of each axis."""
        return self._checked(next(extremes(self.axes.axes)))[1]

    def trial(self, point: Point) -> Trial:
        """Return the trial of a point.

        Raises:
            UsageError: The config cannot be composed, built or trained.
        """
        return self._trial(point, *self._checked(point))

    def _checked(self, point: Point) -> tuple[Any, Trainer]:
        cfg = compose(self._directives(point))
        return cfg, checked_trainer(cfg, ranks=self.ranks)

    def _trial(self, point: Point, cfg: Any, trainer: Trainer) -> Trial:
        require_recorded(self.objective, trainer)
        identity = fingerprint(cfg)
        values = {key: str(value) for key, value in point.items()}
        return Trial(
            name=f"{_readable(values)}-{identity[:8]}",
            fingerprint=identity,
            edits=tuple(self.axes.edits(point)),
            steps=trainer.steps,
            method=self.method,
            values=values,
            flops=self._flops_of_step(cfg, trainer),
        )

    def _directives(self, point: Point) -> list[str]:
        return directives(self.base, self.axes.edits(point))

    def _composed(self, chosen: Iterable[Point]) -> list[Trial]:
        trials: dict[str, Trial] = {}
        problems: dict[str, list[str]] = {}
        for point in chosen:
            try:
                checked = self._checked(point)
            except UsageError as error:
                where = ", ".join(f"{key}={value}" for key, value in point.items())
                problems.setdefault(str(error), []).append(where)
                continue
            trial = self._trial(point, *checked)
            trials.setdefault(trial.fingerprint, trial)
        if problems:
            raise UsageError("\n".join(["the sweep cannot be run:", *_lines(problems)]))
        return list(trials.values())

    def _flops_of_step(self, cfg: Any, trainer: Trainer) -> float | None:
        """Return the training FLOPs of a step, or None if the model does not declare them."""
        length, counted = trainer.sequence_length, getattr(trainer.model, "flops_per_token", None)
        if length is None or counted is None:
            return None
        same = (fingerprint(cfg.model), length)  # counting takes seconds for a large model
        if same not in self._flops:
            self._flops[same] = counted(length)
        return self._flops[same] * length * trainer.global_batch_size


def _readable(values: dict[str, str]) -> str:
    """Return a name without characters that are special to a shell or a file system."""
    text = ",".join(f"{axis_label(key)}={value}" for key, value in values.items())
    text = re.sub(r"[^\w=,+.-]+", ".", text.replace("]=", "=").replace(")", ""))
    return text[:120].strip(".")


def _lines(problems: dict[str, list[str]]) -> Iterator[str]:
    """Yield each problem once, with the first of the points that have it."""
    for problem, where in list(problems.items())[:_SHOWN]:
        more = f" (and {len(where) - 1} more)" if where[1:] else ""
        yield f"  {where[0]}{more}: {problem}"
    if len(problems) > _SHOWN:
        yield f"  and {len(problems) - _SHOWN} more problems"

"""The trials of a sweep, from its axes: composed and checked before anything is written."""

import re
import shlex
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
from nanigpt.errors import UnknownName, UsageError
from nanigpt.training.trainer import Trainer

_SHOWN = 10  # problems
_TRY = "\n  try: "


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
        given = self._directives(point)
        try:
            cfg = compose(given)
        except UsageError as error:
            raise UsageError(self._with_advice(error)) from error
        return cfg, checked_trainer(cfg, ranks=self.ranks, directives=given)

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
        problems: dict[str, list[Point]] = {}
        for point in chosen:
            try:
                checked = self._checked(point)
            except UsageError as error:
                problems.setdefault(str(error), []).append(point)
                continue
            trial = self._trial(point, *checked)
            trials.setdefault(trial.fingerprint, trial)
        if problems:
            raise UsageError("\n".join(["the sweep cannot be run:", *self._lines(problems)]))
        return list(trials.values())

    def _lines(self, problems: dict[str, list[Point]]) -> Iterator[str]:
        """Yield each problem once, with the first of the points that have it."""
        for problem, where in list(problems.items())[:_SHOWN]:
            more = f" (and {len(where) - 1} more)" if where[1:] else ""
            yield f"  {', '.join(self.axes.edits(where[0]))}{more}: {problem}"
        if len(problems) > _SHOWN:
            yield f"  and {len(problems) - _SHOWN} more problems"

    def _with_advice(self, error: UsageError) -> str:
        """Return the message of `compose`. If it corrects a name of an axis, correct the axis."""
        told, _, advice = str(error).partition(_TRY)
        cause = error.__cause__
        if isinstance(cause, UnknownName) and advice.removeprefix("'").startswith("--config="):
            right = next((name for name in cause.near if name in advice), None)
            wrong = re.compile(rf"(?<!\w){re.escape(cause.name)}(?!\w)")
            text = next((text for text in self.axes.texts if wrong.search(text)), None)
            if right is not None and text is not None:
                return told + _TRY + shlex.quote(f"--sweep={wrong.sub(right, text)}")
        return str(error)

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

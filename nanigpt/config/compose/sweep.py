"""The configs of a sweep in Python, for any DAG.

for cfg in sweep(base, {LearningRate: [1e-4, 3e-4], "optimizer.betas[1]": [0.95, 0.99]}): ...
for cfg in sweep(base, {LearningRate: LogUniform(1e-5, 1e-2)}, trials=20, seed=0): ...
for cfg in sweep(base, {depth: [4, 8], (LearningRate, "steps"): [(1e-4, 500), (3e-4, 200)]}): ...
for cfg in sweep(base, {"schedule": [...], "steps": When("schedule", cosine, [100, 200])}): ...
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.compose.overrides import set_value
from nanigpt.config.compose.space import (
    Axis,
    Integers,
    LogUniform,
    Point,
    Space,
    Uniform,
    condition,
    key_name,
    points,
    require_distinct,
)
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.provenance import called_by, set_by
from nanigpt.errors import UsageError

__all__ = ["Integers", "Key", "LogUniform", "Trial", "Uniform", "When", "sweep", "sweep_trials"]

Key = type[fdl.Tag] | str | Callable[[Any, Any], None]
"""A tag, a path, or a fiddler that takes one value."""


@dataclass(frozen=True)
class When:
    """Values of an axis that exists only in points where another axis has a value.

    Args:
        key: Key of the other axis, which stands earlier and has a list.
        value: Its value.
        values: A list of values or a range.
    """

    key: Key
    value: Any
    values: Any


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: a value for each key, and the config with these values."""

    values: Point
    cfg: fdl.Buildable


def sweep(
    base: fdl.Buildable,
    axes: Mapping[Key | tuple[Key, ...], Any],
    *,
    trials: int | None = None,
    seed: int = 0,
) -> Iterator[fdl.Buildable]:
    """Yield a copy of `base` for each point; `base` does not change.

    Args:
        base: The config.
        axes: For each tag, path or fiddler, a list of values (or of configs), a range, or a
            `When`. A tuple of them has a list of tuples, whose values go together.
        trials: Number of points to draw at random; None takes every combination of the lists.
        seed: Seed of the draws; the i-th draw does not depend on `trials`.

    Raises:
        UsageError: An axis does not fit the config. Every point is tried before this returns.
    """
    return (trial.cfg for trial in sweep_trials(base, axes, trials=trials, seed=seed))


def sweep_trials(
    base: fdl.Buildable,
    axes: Mapping[Key | tuple[Key, ...], Any],
    *,
    trials: int | None = None,
    seed: int = 0,
) -> Iterator[Trial]:
    """Yield what `sweep` yields, with the values of each point.

    Points that give equal configs are one.
    """
    known: list[Axis] = []
    for key, values in axes.items():
        known.append(_axis(key, values, known))
    require_distinct(known)
    distinct: dict[str, Point] = {}
    for point in points(known, trials=trials, seed=seed):
        distinct.setdefault(fingerprint(_configured(base, point)), point)
    return (Trial(point, _configured(base, point)) for point in distinct.values())


def _axis(key: Key | tuple[Key, ...], values: Any, earlier: list[Axis]) -> Axis:
    """Return an axis that was given in Python."""
    keys = key if isinstance(key, tuple) else (key,)
    name = key_name(key)
    when: tuple[tuple[Any, Any], ...] = ()
    if isinstance(values, When):
        when, values = condition(earlier, values.key, values.value), values.values
    space = _space(name, values)
    if len(keys) > 1:
        rows = space if isinstance(space, tuple) else ()
        if not rows or any(not isinstance(r, (list, tuple)) or len(r) != len(keys) for r in rows):
            raise UsageError(f"{name}: expected a list of tuples of {len(keys)} values")
        space = tuple(map(tuple, rows))
    return Axis(keys, space, when)


def _space(name: str, values: Any) -> Space:
    if isinstance(values, (Uniform, Integers)):
        return values
    if isinstance(values, (str, fdl.Buildable)) or not isinstance(values, Iterable):
        raise UsageError(f"{name}: expected a list of values or a range, not {values!r}")
    found = tuple(getattr(values, "tolist", lambda: values)())  # of NumPy
    if not found:
        raise UsageError(f"{name}: expected at least one value")
    return found


def _configured(base: fdl.Buildable, point: Point) -> fdl.Buildable:
    cfg = copy.deepcopy(base)
    for key, value in point.items():
        if isinstance(key, (str, type)):
            with set_by(f"sweep of {key_name(key)}"):
                set_value(cfg, key, value)
        else:
            with called_by(f"sweep of {key_name(key)}", cfg):
                key(cfg, value)
    return cfg

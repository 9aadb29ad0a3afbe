"""The axes of a sweep, and the configs that they give, for any DAG.

for cfg in sweep(base, {LearningRate: [1e-4, 3e-4], "optimizer.betas[1]": [0.95, 0.99]}): ...
for cfg in sweep(base, {LearningRate: LogUniform(1e-5, 1e-2)}, trials=20, seed=0): ...
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.compose.call import Call
from nanigpt.config.compose.overrides import set_value
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.provenance import set_by
from nanigpt.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf:
            raise UsageError(f"expected low < high, not {self.low}, {self.high}")

    def at(self, fraction: float) -> float:
        """Return the value below which this fraction of the range lies."""
        return self.rounded(self.low + fraction * (self.high - self.low))

    def rounded(self, value: float) -> float:
        """Return a value rounded to six digits, which is how it is named and set."""
        return min(max(float(f"{value:.6g}"), self.low), self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A distribution from `low` to `high` that is uniform in the logarithm."""

    def __post_init__(self):
        super().__post_init__()
        if self.low <= 0:
            raise UsageError(f"expected 0 < low on a logarithmic scale, not {self.low}")

    def at(self, fraction: float) -> float:
        return self.rounded(self.low * (self.high / self.low) ** fraction)


@dataclass(frozen=True)
class Integers:
    """Every integer from `low` to `high` alike, both included."""

    low: int
    high: int

    def __post_init__(self):
        if not self.low < self.high:
            raise UsageError(f"expected low < high, not {self.low}, {self.high}")

    def at(self, fraction: float) -> int:
        return self.low + int(fraction * (self.high - self.low + 1))


RANGES = {"uniform": Uniform, "loguniform": LogUniform, "int": Integers}

Space = tuple | Uniform | Integers


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: a value for each key, and the config with these values."""

    values: dict[Any, Any]
    cfg: fdl.Buildable


def sweep(
    base: fdl.Buildable,
    axes: Mapping[type[fdl.Tag] | str, Any],
    *,
    trials: int | None = None,
    seed: int = 0,
) -> Iterator[fdl.Buildable]:
    """Yield a copy of `base` for each point; `base` does not change.

    Args:
        base: The config.
        axes: For each tag or path, a list of values (or of configs), or a range.
        trials: Number of points to draw at random; None takes every combination of the lists.
        seed: Seed of the draws; the i-th draw does not depend on `trials`.

    Raises:
        UsageError: An axis does not fit the config. Every point is tried before this returns.
    """
    return (trial.cfg for trial in sweep_trials(base, axes, trials=trials, seed=seed))


def sweep_trials(
    base: fdl.Buildable,
    axes: Mapping[type[fdl.Tag] | str, Any],
    *,
    trials: int | None = None,
    seed: int = 0,
) -> Iterator[Trial]:
    """As `sweep`, with the values of each point. Points that give equal configs are one."""
    spaces = {key: _space(key, values) for key, values in axes.items()}
    distinct: dict[str, dict] = {}
    for point in points(spaces, trials=trials, seed=seed):
        distinct.setdefault(fingerprint(_configured(base, point)), point)
    return (Trial(point, _configured(base, point)) for point in distinct.values())


def points(
    axes: Mapping[Any, Space], *, trials: int | None = None, seed: int = 0
) -> Iterator[dict[Any, Any]]:
    """Every combination of the axes' values, or `trials` random draws.

    A draw is a pure function of seed, its number and the axis.

    Raises:
        UsageError: there is no axis, a range without `trials`, or `trials` is below 1.
    """
    if not axes:
        raise UsageError("a sweep needs something to vary")
    if trials is None:
        for key, space in axes.items():
            if not isinstance(space, tuple):
                raise UsageError(
                    f"{_name(key)}: a grid needs a list of values; a range is drawn from by a "
                    "random or TPE search of a given number of trials"
                )
        combinations = itertools.product(
            *(space for space in axes.values() if isinstance(space, tuple))
        )
        return (dict(zip(axes, values, strict=True)) for values in combinations)
    if trials < 1:
        raise UsageError(f"trials={trials}: expected at least 1")
    return (
        {key: _at(space, _fraction(seed, i, _name(key))) for key, space in axes.items()}
        for i in range(trials)
    )


def extremes(axes: Mapping[Any, Space]) -> Iterator[dict[Any, Any]]:
    """Yield a few points that cover every listed value, and both ends of every range."""
    ends = {
        key: space if isinstance(space, tuple) else (space.low, space.high)
        for key, space in axes.items()
    }
    for i in range(max(map(len, ends.values()))):
        yield {key: values[min(i, len(values) - 1)] for key, values in ends.items()}


def parse_axis(text: str) -> tuple[str, Space]:
    """Parse `tag:TAG=SPACE` or `set:PATH=SPACE`.

    SPACE is a list `[a,b,c]` of values in the form of `tag:` and `set:`, which stay text, or
    `uniform(a,b)`, `loguniform(a,b)`, `int(a,b)`.

    Returns:
        `tag:TAG` or `set:PATH`, and its space.

    Raises:
        UsageError: The text has another form.
    """
    key, equals, space = text.partition("=")
    key, space = key.strip(), space.strip()
    kind, colon, name = key.partition(":")
    if not equals or not colon or not name or kind not in ("tag", "set"):
        raise UsageError(f"--sweep={text}: expected tag:TAG=[a,b,c] or set:PATH=[a,b,c]")
    try:
        if space.startswith("[") and space.endswith("]"):
            return key, tuple(_split(space[1:-1]))
        if "(" not in space:
            kinds = ", ".join(f"{name}(low,high)" for name in RANGES)
            raise UsageError(
                f"{space!r} is one value, which --config sets; expected [a,b,c] or one of {kinds}"
            )
        call = Call.parse(space)
        if call.name not in RANGES:
            raise UnknownName(f"unknown range {call.name!r}", call.name, RANGES)
        return key, call.apply(RANGES[call.name])
    except UsageError as error:
        raise UsageError(f"--sweep={text}: {error}") from error


def _split(text: str) -> list[str]:
    """Split a text at commas that are outside of brackets and quotes."""
    items, start, depth, quote = [], 0, 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
    if depth or quote:
        raise UsageError("a bracket or quote is not closed")
    items.append(text[start:].strip())
    if "" in items:
        raise UsageError("a value of the list is empty")
    return items


def _space(key: Any, values: Any) -> Space:
    """Return an axis that was given in Python."""
    if isinstance(values, (Uniform, Integers)):
        return values
    if isinstance(values, (str, fdl.Buildable)) or not isinstance(values, Iterable):
        raise UsageError(f"{_name(key)}: expected a list of values or a range, not {values!r}")
    values = tuple(values.tolist() if hasattr(values, "tolist") else values)  # NumPy's
    if not values:
        raise UsageError(f"{_name(key)}: expected at least one value")
    return values


def _name(key: Any) -> str:
    """Return an axis in the form of the command line."""
    if isinstance(key, str):
        return key if key.startswith(("tag:", "set:")) else f"set:{key}"
    return f"tag:{key.__name__}"


def _fraction(seed: int, number: int, name: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    digest = hashlib.blake2b(f"{seed}/{number}/{name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _at(space: Space, fraction: float) -> Any:
    return space[int(fraction * len(space))] if isinstance(space, tuple) else space.at(fraction)


def _configured(base: fdl.Buildable, point: dict[Any, Any]) -> fdl.Buildable:
    cfg = copy.deepcopy(base)
    for key, value in point.items():
        with set_by(f"sweep of {_name(key)}"):
            set_value(cfg, key, value)
    return cfg

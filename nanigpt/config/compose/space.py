"""The space of a sweep: lists and ranges of values, axes that vary together, and conditions."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanigpt.errors import UsageError


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise UsageError(f"expected 0 < low on a logarithmic scale, not {self.low}")

    def at(self, fraction: float) -> float:
        return self.rounded(self.low * (self.high / self.low) ** fraction)


@dataclass(frozen=True)
class Integers:
    """A uniform distribution of the integers from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"expected low < high, not {self.low}, {self.high}")

    def at(self, fraction: float) -> int:
        return self.low + int(fraction * (self.high - self.low + 1))


RANGES = {"uniform": Uniform, "loguniform": LogUniform, "int": Integers}

Space = tuple[Any, ...] | Uniform | Integers
Point = dict[Any, Any]
"""A value for each key that varies."""


@dataclass(frozen=True)
class Axis:
    """A key that varies, or several keys whose values go together.

    Attributes:
        keys: The keys.
        space: A range, or a tuple of values. An axis of several keys has a tuple of rows, which
            have a value for each key.
        when: Pairs of another key and a value. The axis exists only in points with these values.
    """

    keys: tuple[Any, ...]
    space: Space
    when: tuple[tuple[Any, Any], ...] = ()

    def __str__(self) -> str:
        names = [key_name(key) for key in self.keys]
        name = names[0] if len(names) == 1 else f"zip({', '.join(names)})"
        conditions = [f"{key_name(key)}={value}" for key, value in self.when]
        return f"when({', '.join([*conditions, name])})" if conditions else name

    def exists(self, point: Point) -> bool:
        """Return whether a point, in which earlier axes have their values, has this axis."""
        return all(key in point and point[key] == value for key, value in self.when)

    def row(self, value: Any) -> Point:
        """Return the value of each key, for one value of the space."""
        return dict(zip(self.keys, value if len(self.keys) > 1 else (value,), strict=True))

    def value(self, point: Point) -> Any:
        """Return the value of the space that a point has; the inverse of `row`."""
        return tuple(point[k] for k in self.keys) if len(self.keys) > 1 else point[self.keys[0]]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a list, or both ends of a range."""
        space = self.space
        return space if isinstance(space, tuple) else (space.low, space.high)


def condition(axes: Sequence[Axis], key: Any, value: Any) -> tuple[tuple[Any, Any], ...]:
    """Return the `when` of an axis that exists where the key of an earlier axis has a value.

    Raises:
        UsageError: No axis has this key, or none of them has this value in its list.
    """
    mine = [axis for axis in axes if key in axis.keys]
    known = [v for axis in mine for end in axis.ends for k, v in axis.row(end).items() if k == key]
    if not mine or value not in known or not all(isinstance(a.space, tuple) for a in mine):
        listed = ", ".join(map(str, known)) or "no earlier axis varies it"
        raise UsageError(f"{key_name(key)}={value}: expected a value of an earlier list: {listed}")
    # The axis that the condition refers to may be conditional itself.
    return (*(mine[0].when if len(mine) == 1 else ()), (key, value))


def require_distinct(axes: Sequence[Axis]) -> None:
    """Refuse axes that give one key two values.

    Raises:
        UsageError: Two axes have the same key, and some point has both.
    """
    for i, axis in enumerate(axes):
        for other in axes[:i]:
            shared = [key for key in axis.keys if key in other.keys]
            given = dict(other.when)
            exclusive = any(key in given and given[key] != value for key, value in axis.when)
            if shared and not exclusive:
                raise UsageError(f"{key_name(shared[0])} is varied twice; give it one list")


def points(
    axes: Sequence[Axis], *, trials: int | None = None, seed: int = 0
) -> Iterator[dict[Any, Any]]:
    """Return every combination of the axes' values, or `trials` random draws.

    A draw is a pure function of seed, its number and the axis.

    Raises:
        UsageError: There is no axis, a range without `trials`, or `trials` is below 1.
    """
    if not axes:
        raise UsageError("a sweep needs something to vary")
    if trials is None:
        return iter(_grid(axes))
    if trials < 1:
        raise UsageError(f"trials={trials}: expected at least 1")
    return (_draw(axes, seed, i) for i in range(trials))


def extremes(axes: Sequence[Axis]) -> Iterator[Point]:
    """Yield a few points that cover every listed value, and both ends of every range."""
    for when in dict.fromkeys(axis.when for axis in axes):
        forced = dict(when)
        mine = [axis for axis in axes if axis.when == when]
        for i in range(max(len(axis.ends) for axis in mine)):
            point: Point = {}
            for axis in axes:
                if not axis.exists(point):
                    continue
                rows = [axis.row(end) for end in axis.ends]
                fitting = [r for r in rows if all(r.get(k, v) == v for k, v in forced.items())]
                point |= rows[min(i, len(rows) - 1)] if axis in mine else (fitting or rows)[0]
            yield point


def key_name(key: Any) -> str:
    """Return the name of a key that a sweep varies, in the form of the command line."""
    if isinstance(key, tuple):
        return f"zip({', '.join(map(key_name, key))})"
    if isinstance(key, type):
        return f"tag:{key.__name__}"
    if callable(key):
        return f"fiddler:{getattr(key, '__name__', key)}"
    return key if re.match(r"[a-z_]+:", key) else f"set:{key}"


def _grid(axes: Sequence[Axis]) -> list[Point]:
    found: list[Point] = [{}]
    for axis in axes:
        if not isinstance(axis.space, tuple):
            raise UsageError(
                f"{axis}: a grid needs a list of values; a range is drawn from by a "
                "random or TPE search of a given number of trials"
            )
        rows = [axis.row(value) for value in axis.space]
        found = [p | row for p in found for row in (rows if axis.exists(p) else [{}])]
    return found


def _draw(axes: Sequence[Axis], seed: int, number: int) -> Point:
    point: Point = {}
    for axis in axes:
        if axis.exists(point):
            space, fraction = axis.space, _fraction(seed, number, str(axis))
            if isinstance(space, tuple):
                point |= axis.row(space[int(fraction * len(space))])
            else:
                point |= axis.row(space.at(fraction))
    return point


def _fraction(seed: int, number: int, name: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    digest = hashlib.blake2b(f"{seed}/{number}/{name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48

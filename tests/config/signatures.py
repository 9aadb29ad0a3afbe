"""Callables whose signatures are unlike those of this project."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from tests.config.components import Color, Part


class Variadic:
    """Takes positional arguments, keywords of any name, and has an annotation without a meaning."""

    def __init__(self, first, /, second: int = 2, *rest: int, third: "Absent" = 3, **more: float):  # noqa: F821
        self.given = (first, second, rest, third, more)


@dataclasses.dataclass
class Table:
    """Defaults that are made anew, and containers by their abstract types."""

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    parts: Sequence[Part] = ()
    by_color: Mapping[Color, int] | None = None


class Sized(Protocol):
    size: int


def sized(of: Sized) -> int:
    return of.size


def scaled(size, factor: float = 2.0, *, offset: int = 0) -> float:
    return size * factor + offset

"""A small DAG that has nothing to do with training."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypeVar

import fiddle as fdl
import torch

from nanigpt.pure import pure

T = TypeVar("T")
Size = NewType("Size", int)


class Rate(fdl.Tag):
    """A rate."""


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Part:
    def __init__(self, *, size: int = 3, rate: Annotated[float, Rate] = 0.5):
        if size < 0:
            raise ValueError(f"size={size}: expected 0 or more")
        self.size = size
        self.rate = rate


class Whole:
    def __init__(
        self,
        *,
        name: str,
        parts: list[Part],
        path: str | None = None,
        count: int = 1,
        exact: bool = False,
        limit: int | None = None,
        dtype: torch.dtype = torch.float32,
        pair: tuple[float, float] = (0.9, 0.95),
        table: dict[str, int] | None = None,
        mode: Literal["fast", "slow"] = "fast",
        color: Color | None = None,
        names: list[str] | None = None,
    ):
        self.name = name
        self.parts = parts
        self.path = path
        self.count = count
        self.exact = exact
        self.limit = limit
        self.dtype = dtype
        self.pair = pair
        self.table = table
        self.mode = mode
        self.color = color
        self.names = names


class Owner:
    """Its defaults are objects of the class, which a config must not change."""

    def __init__(
        self,
        *,
        part: Part = Part(),  # noqa: B008
        sizes: list[int] = [1, 2],  # noqa: B006
        parts: list[Any] = [None],  # noqa: B006
    ):
        self.part = part
        self.sizes = sizes
        self.parts = parts


def whole() -> fdl.Config[Whole]:
    shared = fdl.Config(Part)
    return fdl.Config(Whole, name="w", parts=[shared, fdl.Config(Part), shared], table={"a": 1})


class Side(enum.IntEnum):
    LEFT = 1


class Mood(enum.StrEnum):
    CALM = "calm"


class Point(NamedTuple):
    x: int
    y: int


class Anything:
    """Takes what it is given."""

    def __init__(self, *, a: Any = None, b: Any = None):
        self.a = a
        self.b = b

    @classmethod
    @pure
    def made(cls, *, a: Any = None) -> "Anything":
        return cls(a=a)

    def forget(self) -> None:
        self.a = None


class Something(Anything):
    """Inherits all."""


class Defaults:
    """Its defaults have no content that could be compared."""

    def __init__(self, *, a: Any = object(), b: Any = lambda: 0):  # noqa: B008
        self.a = a
        self.b = b


class Parts:
    def __init__(
        self,
        first: int = 0,
        /,
        *rest: int,
        many: Sequence[Part] = (),
        named: Mapping[str, Part] | None = None,
        act: Callable | None = None,
        thing: object = None,
        some: T = None,
        others: Iterable[T] = (),
        size: Size = 0,
        **extra: float,
    ):
        self.first = first
        self.rest = rest
        self.extra = extra


@pure
def pair(a: Any, b: Any = None) -> tuple:
    return a, b


def _private() -> None:
    """No config file may name it."""

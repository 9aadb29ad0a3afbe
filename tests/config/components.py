"""A small DAG that has nothing to do with training."""

import enum
from typing import Annotated, Any, Literal

import fiddle as fdl
import torch


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

"""How many parameters each node of a config has, and of what shapes: told by a build on meta."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.check.assembly import Assembly


@dataclass(frozen=True)
class Size:
    """What a node holds.

    Attributes:
        tensors: name and shape of each parameter and buffer that no node below it holds.
        parameters: elements of each parameter at or below it, by the parameter's number.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    parameters: dict[int, int]


def sizes(cfg: fdl.Buildable) -> dict[int, Size]:
    """Return the size of each node by its `id`, from a build that allocates nothing.

    Raises:
        UsageError: the config does not build; the message says where and why.
    """
    meter = _Meter()
    with torch.device("meta"):
        Assembly(cfg, on_built=meter.measure).check()
    return meter.sizes


def n_parameters(parts: Iterable[Size]) -> int:
    """Parameters of several nodes together; what they share counts once."""
    union: dict[int, int] = {}
    for size in parts:
        union |= size.parameters
    return sum(union.values())


class _Meter:
    """Measures nodes as they are built, from the leaves up."""

    def __init__(self) -> None:
        self.sizes: dict[int, Size] = {}
        self._numbers: dict[int, int] = {}  # of tensors, by id

    def measure(self, node: fdl.Buildable, made: Any) -> None:
        below = [self.sizes[id(child)] for child in _nodes(fdl.ordered_arguments(node))]
        self.sizes[id(node)] = self._size(made, below)

    def _size(self, made: Any, below: list[Size]) -> Size:
        parameters = {number: n for size in below for number, n in size.parameters.items()}
        tensors = []
        if isinstance(made, torch.nn.Module):
            for name, tensor in made.named_parameters():
                number = self._numbers.setdefault(id(tensor), len(self._numbers))
                if number not in parameters:
                    parameters[number] = tensor.numel()
                    tensors.append((name, tuple(tensor.shape)))
            for name, buffer in made.named_buffers():
                if id(buffer) not in self._numbers:
                    self._numbers[id(buffer)] = len(self._numbers)
                    tensors.append((name, tuple(buffer.shape)))
        return Size(tuple(tensors), parameters)


def _nodes(value: Any) -> Iterator[fdl.Buildable]:
    """Yield the nodes that a value holds directly."""
    if isinstance(value, fdl.Buildable):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _nodes(child)

"""A config as flat values: every path of a DAG, and how its value is written."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.paths import arguments, join


@dataclass(frozen=True)
class Node:
    """What stands for a node in a flat view: how it builds, and what."""

    kind: str
    function: Any

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return name if self.kind == "Config" else f"{self.kind}[{name}]"


@dataclass(frozen=True)
class Shared:
    """What stands for a node that was met before, at `path`."""

    path: str

    def __str__(self) -> str:
        return f"(the node {self.path or 'the root'})"


def head(node: fdl.Buildable) -> Node:
    """How a node builds, and what."""
    return Node(type(node).__name__, fdl.get_callable(node))


def leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of everything in a DAG: values, nodes, and nodes met again."""
    yield from _leaves(cfg, "", {})


def _leaves(value: Any, path: str, first: dict[int, str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, fdl.Buildable):
        if id(value) in first:
            yield path, Shared(first[id(value)])
            return
        first[id(value)] = path
        yield path, head(value)
        children = arguments(value).items()
    elif isinstance(value, dict) and value:
        children = [((key,), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(v, fdl.Buildable) for v in value):
        children = list(enumerate(value))
    else:
        yield path, value
        return
    for element, child in children:
        yield from _leaves(child, join(path, element), first)


def show_value(value: Any) -> str:
    """A value as a person would write it; a class or function by its name, a node by its head."""
    if isinstance(value, fdl.Buildable):
        return str(head(value))
    if isinstance(value, (list, tuple)) and any(isinstance(v, fdl.Buildable) for v in value):
        return f"{len(value)} elements"
    if isinstance(value, (type, types.FunctionType)):
        return value.__name__
    return str(value) if isinstance(value, (Node, Shared)) else repr(value)

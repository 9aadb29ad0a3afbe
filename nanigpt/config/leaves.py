"""A config as flat values: every path of a DAG, and how its value is written."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


def holds_nodes(value: Any) -> bool:
    """Whether a list, tuple or dict has nodes in it, however deep."""
    values = value.values() if isinstance(value, dict) else value
    return isinstance(value, (list, tuple, dict)) and any(
        isinstance(v, fdl.Buildable) or holds_nodes(v) for v in values
    )


@dataclass(frozen=True)
class Entry:
    """A value, a node, or a node met again; `owner`'s argument `argument` holds it."""

    path: str
    value: Any
    owner: fdl.Buildable | None
    argument: str | int


def leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of everything in a DAG: values, nodes, and nodes met again."""
    for entry in entries(cfg):
        yield entry.path, entry.value


def entries(cfg: Any) -> Iterator[Entry]:
    """Everything in a DAG, with the argument that holds it; the root has none."""
    yield from _entries(cfg, Entry("", None, None, ""), {})


def _entries(value: Any, at: Entry, first: dict[int, str]) -> Iterator[Entry]:
    if isinstance(value, fdl.Buildable):
        if id(value) in first:
            yield replace(at, value=Shared(first[id(value)]))
            return
        first[id(value)] = at.path
        yield replace(at, value=head(value))
        for name, child in arguments(value).items():
            yield from _entries(child, Entry(join(at.path, name), None, value, name), first)
        return
    if isinstance(value, dict) and value:
        children = [((key,), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)) and holds_nodes(value):
        children = list(enumerate(value))
    else:
        yield replace(at, value=value)
        return
    for element, child in children:
        yield from _entries(child, replace(at, path=join(at.path, element)), first)


def show_value(value: Any) -> str:
    """A value as a person would write it; a class or function by its name, a node by its head."""
    if isinstance(value, fdl.Buildable):
        return str(head(value))
    if isinstance(value, (list, tuple)) and holds_nodes(value):
        return f"{len(value)} elements"
    if isinstance(value, (type, types.FunctionType)):
        return value.__name__
    if value is fdl.NO_VALUE:
        return "(not set)"
    return str(value) if isinstance(value, (Node, Shared)) else repr(value)

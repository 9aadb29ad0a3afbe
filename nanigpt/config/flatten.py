"""A config as flat values: every path of a DAG, and how its value is written."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import fiddle as fdl

from nanigpt.config.paths import Element, arguments, join
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.errors import UsageError


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
    """What stands for a node, list, dict or set that was met before, at `path`."""

    path: str
    kind: str = "node"

    def __str__(self) -> str:
        return f"(the {self.kind} {self.path or 'the root'})"


@dataclass(frozen=True)
class Container:
    """What stands for a list, tuple or dict whose elements have paths of their own."""

    value: Any

    def __str__(self) -> str:
        if holds_nodes(self.value):
            return f"{type(self.value).__name__} of {len(self.value)}"
        return repr(self.value)


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

    @property
    def is_default(self) -> bool:
        """Nobody set the argument, so the class owns the value."""
        return self.owner is not None and self.argument not in fdl.ordered_arguments(self.owner)


def leaves(cfg: Any, *, containers: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every value, node and repeated node in a DAG."""
    for entry in entries(cfg, containers=containers):
        yield entry.path, entry.value


def entries(cfg: Any, *, containers: bool = False) -> Iterator[Entry]:
    """Everything in a DAG, with the argument that holds it; the root has none.

    Args:
        containers: yield lists, tuples and dicts also where their elements are yielded.

    Raises:
        UsageError: it nests too deeply.
    """
    try:
        for entry in _entries(cfg, Entry("", None, None, ""), {}):
            if containers or not isinstance(entry.value, Container):
                yield entry
    except RecursionError as error:
        raise UsageError(f"the config {TOO_DEEP}") from error


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
    if isinstance(value, (list, dict, set)) and not at.is_default:
        if id(value) in first:
            yield replace(at, value=Shared(first[id(value)], type(value).__name__))
            return
        first[id(value)] = at.path
    whole = not ((isinstance(value, dict) and value) or holds_nodes(value))
    yield replace(at, value=value if whole else Container(value))
    children: list[tuple[Element, Any]] = []
    if isinstance(value, dict):
        children = [((key,), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = list(enumerate(value))
    for element, child in children:
        if whole and not isinstance(child, (list, tuple, dict, set)):
            continue
        for entry in _entries(child, replace(at, path=join(at.path, element)), first):
            if not whole or isinstance(entry.value, Shared):  # what a value holds is told by it
                yield entry


def flat(cfg: Any) -> dict[str, Any]:
    """Return the values of a DAG by path, as JSON has them: what JSON lacks is text.

    A node is the name of its class or function; the root's path is `""`.
    """
    plain = (str, int, float, bool, type(None))
    return {path: v if isinstance(v, plain) else show_value(v) for path, v in leaves(cfg)}


def show_value(value: Any) -> str:
    """Return a value as a person would write it; classes, functions and nodes by their names."""
    if isinstance(value, fdl.Buildable):
        return str(head(value))
    if isinstance(value, (list, tuple)) and holds_nodes(value):
        return f"{len(value)} elements"
    if isinstance(value, (type, types.FunctionType)):
        return value.__name__
    if value is fdl.NO_VALUE:
        return "(not set)"
    return str(value) if isinstance(value, (Node, Shared, Container)) else repr(value)

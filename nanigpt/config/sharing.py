"""Which parts of a DAG are held in several places, and which parts are alike.

Fiddle builds a node once, and a list or a dict too, however many arguments hold it; so both count
as shared. A tuple is only what it holds.
"""

import collections
import functools
from collections.abc import Callable, Container, Hashable, Iterator
from typing import Any

import fiddle as fdl


def references(root: Any) -> collections.Counter[int]:
    """In how many places each node, list, dict and set of a DAG is held, by its id."""
    counts: collections.Counter[int] = collections.Counter([id(root)])
    open_parts = [root]
    while open_parts:
        for part in _held(open_parts.pop()):
            counts[id(part)] += 1
            if counts[id(part)] == 1:
                open_parts.append(part)
    return counts


def nodes(root: Any) -> Iterator[fdl.Buildable]:
    """Yield each node of a DAG once."""
    if isinstance(root, fdl.Buildable):
        yield root
    for part in _below(root):
        if isinstance(part, fdl.Buildable) and part is not root:
            yield part


def _below(root: Any) -> Iterator[Any]:
    """Yield each node, list, dict and set below the root once."""
    met: set[int] = set()
    open_parts = [root]
    while open_parts:
        for part in _held(open_parts.pop()):
            if id(part) not in met:
                met.add(id(part))
                open_parts.append(part)
                yield part


def _held(value: Any) -> Iterator[Any]:
    """Yield the nodes, lists, dicts and sets that a value holds directly, in tuples or partials."""
    if isinstance(value, fdl.Buildable):
        children = fdl.ordered_arguments(value).values()
    else:
        children = value.values() if isinstance(value, dict) else value
    for child in children:
        if isinstance(child, (fdl.Buildable, list, dict, set)):
            yield child
        elif isinstance(child, tuple):
            yield from _held(child)
        elif isinstance(child, functools.partial):
            yield from _held((*child.args, *child.keywords.values()))


class Sharing:
    """What is shared in one DAG."""

    def __init__(self, cfg: fdl.Buildable):
        self.references = references(cfg)

    def is_shared(self, value: Any) -> bool:
        return self.references[id(value)] > 1

    def internal(self, value: Any) -> frozenset[int]:
        """Ids of what is held from below `value` only, and of itself.

        A part that is held from outside, too, takes all with it that it holds.
        """
        parts: dict[int, Any] = {id(value): value}
        counts: dict[int, int] = {}
        open_parts = [value]
        while open_parts:
            for part in _held(open_parts.pop()):
                key = id(part)
                counts[key] = counts.get(key, 0) + 1
                if key not in parts:
                    parts[key] = part
                    open_parts.append(part)
        open_parts = [parts[i] for i, count in counts.items() if count < self.references[i]]
        while open_parts:
            part = open_parts.pop()
            if parts.pop(id(part), None) is not None:
                open_parts += _held(part)
        return frozenset({id(value), *parts})

    def key(
        self,
        value: Any,
        *,
        arguments: Callable[[fdl.Buildable], dict[Any, Any]] = fdl.ordered_arguments,
        known: Container[int] = (),
    ) -> Any:
        """Return a key that is equal for values that can replace each other.

        Such values have equal content, tags and inner sharing, and hold the same objects of those
        that are also held from outside.

        Args:
            arguments: Function that returns a node's arguments, with or without defaults.
            known: Ids of objects that count as held from outside.
        """
        if isinstance(value, (fdl.Buildable, list, dict)) and self.is_shared(value):
            return ("outside", id(value))
        if not isinstance(value, (fdl.Buildable, list, dict, tuple)):
            return _leaf(value)
        internal = self.internal(value)
        numbers: dict[int, int] = {}

        def key(part: Any) -> Any:
            if isinstance(part, tuple):
                return (type(part), [key(v) for v in part])
            if not isinstance(part, (fdl.Buildable, list, dict)):
                return _leaf(part)
            if self.is_shared(part) or id(part) in known:
                if id(part) not in internal or id(part) in known:
                    return ("outside", id(part))
                if id(part) in numbers:
                    return ("again", numbers[id(part)])
                numbers[id(part)] = len(numbers)
            if isinstance(part, list):
                return (list, [key(v) for v in part])
            if isinstance(part, dict):
                return (dict, [(k, key(v)) for k, v in part.items()])
            tags = {n: frozenset(t) for n, t in part.__argument_tags__.items() if t}
            given = [(name, key(v)) for name, v in arguments(part).items()]
            return (type(part), fdl.get_callable(part), tags, given)

        return key(value)


def _leaf(value: Any) -> Any:
    """Return the identity of a value: 1 is not True, and objects without equality all differ."""
    if isinstance(value, (set, frozenset)):
        return (type(value), frozenset(value))
    return (type(value), value if isinstance(value, Hashable) else id(value))

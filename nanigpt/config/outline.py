"""A config as an outline: the rows that a reader sees, whatever draws them.

Equal neighbours of a list are one row, and a node met before is a row that refers to the first.
"""

import collections
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.leaves import holds_nodes
from nanigpt.config.paths import arguments, join
from nanigpt.config.units import unit
from nanigpt.errors import UsageError


@dataclass(frozen=True)
class Row:
    """A value, or equal neighbours of a list.

    Attributes:
        label: what it is called below its parent: `head`, `layers[0:32]`, `'key'`.
        path: from the root, with a slice where a row is folded; `set:` takes it.
        values: all that the row stands for; the first is shown.
        owner: the node whose argument `argument` holds it; None at the root.
        tags: of that argument.
        is_default: nobody set that argument.
        first: where the node was met before, and the path of the row that shows it there.
    """

    label: str
    path: str
    values: tuple[Any, ...]
    owner: fdl.Buildable | None = None
    argument: str | int = ""
    tags: tuple[type[fdl.Tag], ...] = ()
    is_default: bool = False
    first: tuple[str, str] | None = None
    children: tuple["Row", ...] = ()

    @property
    def value(self) -> Any:
        return self.values[0]

    @property
    def unit(self) -> str:
        """The unit of a number; empty where none is known."""
        if not isinstance(self.value, (int, float)) or self.owner is None:
            return ""
        return unit(self.owner, self.argument)

    def rows(self) -> Iterator["Row"]:
        """This row and all below it, in the order of the config."""
        yield self
        for child in self.children:
            yield from child.rows()


def outline(cfg: fdl.Buildable) -> Row:
    """The root's row, with all others below it."""
    return _Outline().root(cfg)


@dataclass(frozen=True)
class _Place:
    """Where a value stands: its name, its path in the config, and that of its row."""

    label: str
    path: str
    row: str

    def child(self, element: Any) -> "_Place":
        return _Place(_label(element), join(self.path, element), join(self.row, element))

    def slice(self, start: int, stop: int) -> "_Place":
        index = start if stop == start + 1 else slice(start, stop)
        label, row = join(self.label, index), join(self.row, index)
        return _Place(label, join(self.path, start), row)


class _Outline:
    """Walks a config once; remembers where each node was met first."""

    def __init__(self):
        self._first: dict[int, tuple[str, str]] = {}

    def root(self, cfg: fdl.Buildable) -> Row:
        self._first[id(cfg)] = ("", "")
        return Row("", "", (cfg,), children=self._arguments(cfg, _Place("", "", "")))

    def _arguments(self, node: fdl.Buildable, place: _Place) -> tuple[Row, ...]:
        given, values = fdl.ordered_arguments(node), arguments(node)
        rows = []
        for name in fdl.ordered_arguments(node, include_defaults=True, include_unset=True):
            value = values.get(name, fdl.NO_VALUE)
            if value is fdl.NO_VALUE and not isinstance(node, fdl.Config):
                continue  # it may be given when the Partial is called
            about = {
                "owner": node,
                "argument": name,
                "tags": tuple(sorted(node.__argument_tags__.get(name, ()), key=_tag_name)),
                "is_default": name not in given and value is not fdl.NO_VALUE,
            }
            rows.extend(self._rows((value,), place.child(str(name)), about))
        return tuple(rows)

    def _rows(self, values: tuple[Any, ...], place: _Place, about: dict) -> Iterator[Row]:
        value = values[0]
        if isinstance(value, fdl.Buildable) and id(value) in self._first:
            first = self._first[id(value)]
            yield Row(place.label, place.row, values, **about, first=first)
        elif isinstance(value, fdl.Buildable):
            self._first[id(value)] = (place.path, place.row)
            children = self._arguments(value, place)
            yield Row(place.label, place.row, values, **about, children=children)
        elif isinstance(value, dict) and value:
            below = {**about, "tags": ()}
            children = [
                row
                for key, child in value.items()
                for row in self._rows((child,), place.child((key,)), below)
            ]
            yield Row(place.label, place.row, values, **about, children=tuple(children))
        elif isinstance(value, (list, tuple)) and holds_nodes(value):
            for start, stop in self._ranges(value):
                part = place.slice(start, stop)
                yield from self._rows(tuple(value[start:stop]), part, about)
                for i in range(start + 1, stop):
                    self._meet(value[i], join(place.path, i), part.row)
        else:
            yield Row(place.label, place.row, values, **about)

    def _ranges(self, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[int, int]]:
        """Ranges of neighbours that would build the same, and are all one node or all distinct."""
        times = collections.Counter(map(id, values))
        keys = [
            (_content(v), id(v) if id(v) in self._first or times[id(v)] > 1 else None)
            for v in values
        ]
        for _, indices in itertools.groupby(range(len(values)), key=keys.__getitem__):
            first, *rest = indices
            yield first, first + len(rest) + 1

    def _meet(self, value: Any, path: str, row: str) -> None:
        """Remembers the nodes of an element that has no row of its own."""
        if isinstance(value, fdl.Buildable):
            if id(value) in self._first:
                return
            self._first[id(value)] = (path, row)
            for name, child in fdl.ordered_arguments(value).items():
                self._meet(child, join(path, str(name)), row)
        elif isinstance(value, dict):
            for key, child in value.items():
                self._meet(child, join(path, (key,)), row)
        elif isinstance(value, (list, tuple)):
            for i, child in enumerate(value):
                self._meet(child, join(path, i), row)


def _content(value: Any) -> str | int:
    try:
        return fingerprint(value)
    except UsageError:  # something in it, such as a lambda, has no content to compare
        return id(value)


def _label(element: Any) -> str:
    return repr(element[0]) if isinstance(element, tuple) else str(element)


def _tag_name(tag: type[fdl.Tag]) -> str:
    return tag.__name__

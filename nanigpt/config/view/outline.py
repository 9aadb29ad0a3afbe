"""A config as an outline: the rows that a reader sees, whatever draws them.

Equal neighbours of a list are one row, unless they share differently; a node met before is a row
that refers to the first.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import fiddle as fdl

from nanigpt.config.flatten import holds_nodes
from nanigpt.config.paths import arguments, join, key_text
from nanigpt.config.recursion import refuses_depth
from nanigpt.config.sharing import Sharing
from nanigpt.config.view.argument_unit import unit


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
        holders: how many neighbours, which are one row above, hold this very node; 0 where it is
            not shared among them.
    """

    label: str
    path: str
    values: tuple[Any, ...]
    owner: fdl.Buildable | None = None
    argument: str | int = ""
    tags: tuple[type[fdl.Tag], ...] = ()
    is_default: bool = False
    first: tuple[str, str] | None = None
    holders: int = 0
    children: tuple["Row", ...] = ()

    @property
    def value(self) -> Any:
        return self.values[0]

    def times(self, sign: str) -> str:
        """How many values the row stands for, and whether they are one node."""
        if len(self.values) > 1:
            same = " the same node" if self.values[0] is self.values[1] else ""
            return f"{sign}{len(self.values)}{same}"
        return f"one node in all {self.holders}" if self.holders else ""

    @property
    def unit(self) -> str:
        """The unit of a number; empty where none is known."""
        if not isinstance(self.value, (int, float)) or self.owner is None:
            return ""
        return unit(self.owner, self.argument)

    def rows(self) -> Iterator["Row"]:
        """Yield this row and all rows below it, in the order of the config."""
        yield self
        for child in self.children:
            yield from child.rows()


@refuses_depth
def outline(cfg: fdl.Buildable) -> Row:
    """Return the root's row, with all other rows below it."""
    return _Outline(cfg).root(cfg)


@dataclass(frozen=True)
class _Place:
    """Where a value stands: its name, its path in the config, and that of its row.

    Attributes:
        inside: ids of what is held from inside of the folded row around it only.
        neighbours: how many that row stands for.
    """

    label: str
    path: str
    row: str
    inside: frozenset[int] = frozenset()
    neighbours: int = 0

    def child(self, element: Any) -> "_Place":
        path, row = join(self.path, element), join(self.row, element)
        return replace(self, label=_label(element), path=path, row=row)

    def slice(self, start: int, stop: int) -> "_Place":
        index = start if stop == start + 1 else slice(start, stop)
        label, row = join(self.label, index), join(self.row, index)
        return replace(self, label=label, path=join(self.path, start), row=row)


class _Outline:
    """Walks a config once; remembers where each node was met first."""

    def __init__(self, cfg: fdl.Buildable):
        self._sharing = Sharing(cfg)
        self._first: dict[int, tuple[str, str]] = {}

    def root(self, cfg: fdl.Buildable) -> Row:
        self._first[id(cfg)] = ("", "")
        return Row("", "", (cfg,), children=self._arguments(cfg, _Place("", "", "")))

    def _arguments(self, node: fdl.Buildable, place: _Place) -> tuple[Row, ...]:
        given, values = fdl.ordered_arguments(node), arguments(node)
        rows: list[Row] = []
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
            rows.extend(self._rows((value,), place.child(name), about))
        return tuple(rows)

    def _rows(self, values: tuple[Any, ...], place: _Place, about: dict[Any, Any]) -> Iterator[Row]:
        value = values[0]
        if isinstance(value, fdl.Buildable) and id(value) in self._first:
            first = self._first[id(value)]
            yield Row(place.label, place.row, values, **about, first=first)
        elif isinstance(value, fdl.Buildable):
            self._first[id(value)] = (place.path, place.row)
            holders = 0
            if len(values) > 1 and value is not values[1]:
                inside = self._sharing.internal(value)
                place = replace(place, inside=inside, neighbours=len(values))
            elif self._sharing.is_shared(value) and id(value) not in place.inside:
                holders = place.neighbours
            children = self._arguments(value, replace(place, neighbours=0) if holders else place)
            yield Row(place.label, place.row, values, **about, holders=holders, children=children)
        elif isinstance(value, dict) and value:
            below = {**about, "tags": ()}
            children = tuple(
                row
                for key, child in value.items()
                for row in self._rows((child,), place.child((key,)), below)
            )
            yield Row(place.label, place.row, values, **about, children=children)
        elif isinstance(value, (list, tuple)) and holds_nodes(value):
            for start, stop in self._ranges(value):
                part = place.slice(start, stop)
                yield from self._rows(tuple(value[start:stop]), part, about)
        else:
            yield Row(place.label, place.row, values, **about)

    def _ranges(self, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[int, int]]:
        """Yield ranges of neighbours with the same content and tags.

        Neighbours of a range are either all one node or all distinct, and share the same nodes with
        the rest of the config.
        """
        keys = [self._sharing.key(value, arguments=arguments) for value in values]
        for _, indices in itertools.groupby(range(len(values)), key=keys.__getitem__):
            first, *rest = indices
            yield first, first + len(rest) + 1


def _label(element: Any) -> str:
    if isinstance(element, tuple):
        return key_text(element[0])
    return f"[{element}]" if isinstance(element, int) else str(element)


def _tag_name(tag: type[fdl.Tag]) -> str:
    return tag.__name__

"""Read values without nodes from JSON, as `encode_values` wrote them."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.paths import Element, join
from nanigpt.config.record.encode import KINDS
from nanigpt.config.record.encode_values import MOST_BITS
from nanigpt.config.record.names import find
from nanigpt.errors import UsageError

NODES = {key: kind for kind, key in KINDS.items()}
MOST = 200_000  # nodes and containers of a config, those of a shared part at each place


class Wrong(Exception):
    """Something is wrong in a record. `elements` are the path of the place, the last one first."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.elements: list[Element] = []

    def __str__(self) -> str:
        path = functools.reduce(join, reversed(self.elements), "")
        return f"{path or 'the root'}: {self.args[0]}"


@contextlib.contextmanager
def at(element: Element) -> Iterator[None]:
    """Add an element to the path of what is found wrong within."""
    try:
        yield
    except Wrong as error:
        error.elements.append(element)
        raise


class ValueDecoder:
    """Reader of values without nodes.

    Attributes:
        size: How many nodes and containers were read. Those of a shared part count each time,
            because other code visits them each time.
    """

    def __init__(self) -> None:
        self.size = 0

    def grow(self, size: int) -> None:
        """Count further nodes and containers."""
        self.size += size
        if self.size > MOST:  # a small file could otherwise take all memory and time
            raise Wrong(f"the config has more than {MOST:,} nodes and containers")

    def of(self, value: Any) -> Any:
        """Return the value that JSON stands for."""
        if not isinstance(value, (dict, list)):
            return value
        self.grow(1)
        if isinstance(value, list):
            return self.elements(value)
        marks = [key for key in value if key.startswith("@")]
        if not marks:
            return self.items(value.items())
        for key in marks:
            if key in NODES:
                return self.node(value, key)
        if marks == ["@same"] and len(value) == 1:
            return self.same(value["@same"])
        if marks == ["@tuple", "@of"] and len(value) == 2:
            return self._named_tuple(value["@tuple"], value["@of"])
        if len(value) != 1 or marks[0] not in FORMS:
            raise Wrong(f"{shown(value)} is no value of a config")
        return FORMS[marks[0]](self, value[marks[0]])

    def node(self, value: dict[str, Any], mark: str) -> Any:
        raise Wrong("a node cannot stand here")

    def same(self, name: Any) -> Any:
        raise Wrong("a shared part cannot stand here")

    def items(self, items: Any) -> dict[Any, Any]:
        found = {}
        for key, value in items:
            with at((key,)):
                found[key] = self.of(value)
        return found

    def elements(self, values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise Wrong(f"expected a list, not {shown(values)}")
        found: list[Any] = []
        for value in values:
            times = value.get("@times", 1) if isinstance(value, dict) else 1
            if type(times) is not int or not 1 <= times <= MOST:
                raise Wrong(f"@times={shown(times)}: expected a number from 1 to {MOST:,}")
            if times > 1:
                if not NODES.keys() & value.keys():
                    raise Wrong(f"@times={times}: only nodes are repeated")
                value = {key: part for key, part in value.items() if key != "@times"}
            for _ in range(times):
                try:
                    found.append(self.of(value))
                except Wrong as error:
                    error.elements.append(len(found))
                    raise
        return found

    def name(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise Wrong(f"{shown(text)} is no name; expected module:name")
        try:
            return find(text)
        except UsageError as error:
            raise Wrong(str(error)) from error

    def _named_tuple(self, values: Any, name: Any) -> Any:
        kind, elements = self.name(name), self.elements(values)
        fields = getattr(kind, "_fields", None) if isinstance(kind, type) else None
        if fields is None or not issubclass(kind, tuple) or len(fields) != len(elements):
            raise Wrong(f"{name} is no named tuple of {len(elements)} values")
        return tuple.__new__(kind, elements)

    def _unsorted(self, kind: type, values: Any) -> Any:
        try:
            return kind(self.elements(values))
        except TypeError as error:  # a list, for example
            raise Wrong(f"{shown(values)}: {error}") from error

    def _dict(self, items: Any) -> dict[Any, Any]:
        pairs = [(self.of(key), value) for key, value in rows(items)]
        for key, _ in pairs:
            if not isinstance(key, Hashable) or isinstance(key, fdl.Buildable):
                raise Wrong(f"{shown(key)} cannot be the key of a dict")
        return self.items(pairs)

    def _partial(self, value: Any) -> functools.partial[Any]:
        if not isinstance(value, list) or len(value) != 3:
            raise Wrong(f"{shown(value)}: expected a function, a list and an object")
        function, args, keywords = self.name(value[0]), self.of(value[1]), self.of(value[2])
        if not callable(function) or not isinstance(args, list) or not _are_names(keywords):
            raise Wrong(f"{shown(value)}: expected a function, a list and an object")
        return functools.partial(function, *args, **keywords)

    def _slice(self, value: Any) -> slice:
        ends = self.elements(value)
        if len(ends) != 3 or not all(end is None or type(end) is int for end in ends):
            raise Wrong(f"{shown(value)}: expected start, stop and step")
        return slice(*ends)

    def _complex(self, value: Any) -> complex:
        parts = self.elements(value)
        if [type(part) for part in parts] != [float, float]:
            raise Wrong(f"{shown(value)}: expected two numbers")
        return complex(*parts)


def _text(read: Callable[[str], Any]) -> Callable[[ValueDecoder, Any], Any]:
    """Return a function that reads a value from text."""

    def value(_: ValueDecoder, text: Any) -> Any:
        try:
            if not isinstance(text, str):
                raise ValueError("expected text")
            return read(text)
        except (ValueError, RuntimeError) as error:
            problem = str(error).partition("\n")[0]
            raise Wrong(f"{shown(text)} cannot be read: {problem}") from error

    return value


def _integer(text: str) -> int:
    value = int(text, 16)
    if value.bit_length() > MOST_BITS:
        raise ValueError(f"it has more than {MOST_BITS} bits")
    return value


# Values that JSON lacks, by the mark that `encode` gives them.
FORMS: dict[str, Callable[[ValueDecoder, Any], Any]] = {
    "@bytes": _text(bytes.fromhex),
    "@complex": ValueDecoder._complex,
    "@device": _text(torch.device),
    "@dict": ValueDecoder._dict,
    "@float": _text(float),
    "@frozenset": lambda decoder, values: decoder._unsorted(frozenset, values),
    "@functools.partial": ValueDecoder._partial,
    "@int": _text(_integer),
    "@name": ValueDecoder.name,
    "@path": _text(pathlib.Path),
    "@set": lambda decoder, values: decoder._unsorted(set, values),
    "@slice": ValueDecoder._slice,
    "@tuple": lambda decoder, values: tuple(decoder.elements(values)),
}


def rows(items: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a key and a value."""
    if not isinstance(items, list) or not all(isinstance(i, list) and len(i) == 2 for i in items):
        raise Wrong(f"{shown(items)}: expected pairs of a key and a value")
    return [(key, value) for key, value in items]


def _are_names(keywords: Any) -> bool:
    return isinstance(keywords, dict) and all(isinstance(key, str) for key in keywords)


def shown(value: Any) -> str:
    """Return a value of JSON for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

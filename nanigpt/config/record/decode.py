"""Read a config from values of JSON, as `encode` wrote them.

Nothing is called here but classes of the standard library: nodes are put together, not built.
"""

import contextlib
import functools
import inspect
import pathlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fiddle as fdl
import torch
from fiddle.signatures import get_signature

from nanigpt.config.paths import Element, join
from nanigpt.config.record.encode import KINDS, class_defaults, class_tags, same_json
from nanigpt.config.record.names import find
from nanigpt.errors import UsageError

_CLASS_OF = {key: kind for kind, key in KINDS.items()}
_MOST_NODES = 1_000_000  # a record of a few bytes could otherwise fill the memory
_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


class _Wrong(Exception):
    """Something is wrong in a record. `elements` are the path of the place, the last one first."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.elements: list[Element] = []

    def __str__(self) -> str:
        path = functools.reduce(join, reversed(self.elements), "")
        return f"{path or 'the root'}: {self.args[0]}"


@contextlib.contextmanager
def _at(element: Element) -> Iterator[None]:
    try:
        yield
    except _Wrong as error:
        error.elements.append(element)
        raise


@dataclass
class _Class:
    """A class or function that nodes name.

    Attributes:
        function: The class or function.
        tags: Tags of its arguments.
        defaults: Defaults of the day of the record, as JSON.
        changed: Those that are others today.
        is_stale: Whether a parameter of that day is gone.
    """

    function: Callable
    tags: dict[str | int, frozenset[type[fdl.Tag]]]
    defaults: dict[str, Any]
    changed: list[str]
    is_stale: bool


@dataclass
class _Scope:
    """Shared parts below a node: as JSON, and as values once a node holds them."""

    above: "_Scope | None"
    parts: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)


class Decoder:
    """A config from the values `config` and `classes` of a record.

    Attributes:
        config: The root.
        made: Every node, with its class.

    Raises:
        UsageError: The values are not those of a config, or name an object that a config file may
            not name. The message begins with the place in the config.
    """

    def __init__(self, config: Any, classes: Any):
        if not isinstance(classes, dict):
            raise UsageError(f"classes: expected an object, not {_shown(classes)}")
        self._entries = classes
        self._classes: dict[str, _Class] = {}
        self._scope: _Scope | None = None
        self.made: list[tuple[fdl.Buildable, _Class]] = []
        try:
            self.config = self._of(config)
        except _Wrong as error:
            raise UsageError(str(error)) from error.__cause__
        if not isinstance(self.config, fdl.Buildable):
            raise UsageError(f"it holds {type(self.config).__name__}, not a config")

    @property
    def is_stale(self) -> bool:
        """Whether classes have other parameters than on the day of the record."""
        return any(known.is_stale for known in self._classes.values())

    def fill(self, *, everything: bool) -> list[tuple[fdl.Buildable, str, Any]]:
        """Set arguments that a node left to a default, and whose default is another one today.

        Args:
            everything: Set those whose default is the same as well, for functions that edit a
                record of an earlier version.

        Returns:
            Node, argument and value of those that have the same default.
        """
        same = []
        for node, known in self.made:
            given = node.__arguments__
            for name in known.defaults if everything else known.changed:
                if name not in given:
                    given[name] = value = self._default(known, name)
                    if name not in known.changed:
                        same.append((node, name, value))
        return same

    def _default(self, known: _Class, name: str) -> Any:
        try:
            return self._of(known.defaults[name])
        except _Wrong as error:
            raise UsageError(f"classes: {known.defaults}: {error.args[0]}") from error.__cause__

    def _of(self, value: Any) -> Any:
        if not isinstance(value, (dict, list)):
            return value
        if isinstance(value, list):
            return self._elements(value)
        marks = [key for key in value if key.startswith("@")]
        if not marks:
            return self._items(value.items())
        for key in marks:
            if key in _CLASS_OF:
                return self._node(value, key)
        if marks == ["@same"] and len(value) == 1:
            return self._same(value["@same"])
        if marks == ["@tuple", "@of"] and len(value) == 2:
            return self._named_tuple(value["@tuple"], value["@of"])
        if len(value) != 1 or marks[0] not in _FORMS:
            raise _Wrong(f"{_shown(value)} is no value of a config")
        return _FORMS[marks[0]](self, value[marks[0]])

    def _items(self, items: Any) -> dict[Any, Any]:
        found = {}
        for key, value in items:
            with _at((key,)):
                found[key] = self._of(value)
        return found

    def _elements(self, values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise _Wrong(f"expected a list, not {_shown(values)}")
        found: list[Any] = []
        for value in values:
            times = value.get("@times", 1) if isinstance(value, dict) else 1
            if type(times) is not int or not 1 <= times <= _MOST_NODES:
                raise _Wrong(f"@times={_shown(times)}: expected a whole number from 1")
            if times > 1:
                value = {key: part for key, part in value.items() if key != "@times"}
            for _ in range(times):
                try:
                    found.append(self._of(value))
                except _Wrong as error:
                    error.elements.append(len(found))
                    raise
        return found

    def _node(self, value: dict[str, Any], mark: str) -> fdl.Buildable:
        scope = self._scope
        if "@shared" in value:
            parts = value["@shared"]
            if not isinstance(parts, dict):
                raise _Wrong(f"@shared: expected an object, not {_shown(parts)}")
            self._scope = _Scope(scope, parts)
        known = self._class(value[mark])
        arguments: dict[str | int, Any] = {}
        tags = known.tags
        for name, part in value.items():
            if not name.startswith("@"):
                try:
                    arguments[name] = self._of(part)
                except _Wrong as error:
                    error.elements.append(name)
                    raise
            elif name == "@args":
                for odd, further in _arguments(part):
                    with _at(odd):
                        arguments[odd] = self._of(further)
            elif name == "@tags":
                own = {odd: self._tags(names) for odd, names in _arguments(part)}
                tags = {odd: found for odd, found in {**tags, **own}.items() if found}
            elif name not in (mark, "@shared"):
                raise _Wrong(f"a node has no {name}")
        if "@shared" in value:
            assert self._scope is not None
            if unused := [name for name in parts if name not in self._scope.values]:
                raise _Wrong(f"no node holds the shared part {unused[0]!r}")
            self._scope = scope
        if len(self.made) >= _MOST_NODES:
            raise _Wrong(f"the config has more than {_MOST_NODES:,} nodes")
        metadata = fdl.BuildableTraverserMetadata(
            known.function,
            tuple(arguments),
            tags,  # type: ignore[arg-type]
        )
        node = _CLASS_OF[mark].__unflatten__(arguments.values(), metadata)
        self.made.append((node, known))
        return node

    def _class(self, short: Any) -> _Class:
        if not isinstance(short, str) or short not in self._entries:
            raise _Wrong(f"classes has no {_shown(short)}")
        if short not in self._classes:
            self._classes[short] = self._new_class(self._entries[short])
        return self._classes[short]

    def _new_class(self, entry: Any) -> _Class:
        if not isinstance(entry, dict) or entry.keys() != {"name", "defaults"}:
            raise _Wrong(f"{_shown(entry)} describes no class; expected its name and defaults")
        function, defaults = self._name(entry["name"]), entry["defaults"]
        if not isinstance(defaults, dict):
            raise _Wrong(f"defaults of {entry['name']}: expected an object")
        try:
            today, tags = class_defaults(function), class_tags(function)
            parameters = get_signature(function).parameters
        except (TypeError, ValueError) as error:
            raise _Wrong(f"{entry['name']} takes no arguments: {error}") from error
        changed = [
            name
            for name, value in defaults.items()
            if name not in today or not same_json(today[name], value)
        ]
        is_stale = any(name not in parameters for name in defaults)
        return _Class(function, tags, defaults, changed, is_stale)

    def _tags(self, names: Any) -> frozenset[type[fdl.Tag]]:
        if not isinstance(names, list):
            raise _Wrong(f"tags: expected a list, not {_shown(names)}")
        found = set()
        for name in names:
            try:
                tag = self._name(name)
            except _Wrong:
                if isinstance(name, str) and name.startswith("nanigpt.tags:"):
                    continue  # a later version has no such tag, and what is built is the same
                raise
            if not (isinstance(tag, type) and issubclass(tag, fdl.Tag)):
                raise _Wrong(f"{name} is not a tag")
            found.add(tag)
        return frozenset(found)

    def _name(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise _Wrong(f"{_shown(text)} is no name; expected module:name")
        try:
            return find(text)
        except UsageError as error:
            raise _Wrong(str(error)) from error

    def _same(self, name: Any) -> Any:
        scope = self._scope
        while scope is not None and not (isinstance(name, str) and name in scope.parts):
            scope = scope.above
        if scope is None:
            raise _Wrong(f"no node above has the shared part {_shown(name)}")
        if name not in scope.values:
            if name in scope.busy:
                raise _Wrong(f"the shared part {name!r} holds itself")
            scope.busy.add(name)
            here, self._scope = self._scope, scope
            scope.values[name] = self._of(scope.parts[name])
            self._scope = here
        return scope.values[name]

    def _named_tuple(self, values: Any, name: Any) -> Any:
        kind, elements = self._name(name), self._elements(values)
        fields = getattr(kind, "_fields", None) if isinstance(kind, type) else None
        if fields is None or not issubclass(kind, tuple) or len(fields) != len(elements):
            raise _Wrong(f"{name} is no named tuple of {len(elements)} values")
        return tuple.__new__(kind, elements)

    def _unsorted(self, kind: type, values: Any) -> Any:
        try:
            return kind(self._elements(values))
        except TypeError as error:  # a list, for example
            raise _Wrong(f"{_shown(values)}: {error}") from error

    def _dict(self, items: Any) -> dict[Any, Any]:
        pairs = [(self._of(key), value) for key, value in _rows(items)]
        for key, _ in pairs:
            if not isinstance(key, Hashable) or isinstance(key, fdl.Buildable):
                raise _Wrong(f"{_shown(key)} cannot be the key of a dict")
        return self._items(pairs)

    def _partial(self, value: Any) -> functools.partial:
        if not isinstance(value, list) or len(value) != 3:
            raise _Wrong(f"{_shown(value)}: expected a function, a list and an object")
        function, args, keywords = self._name(value[0]), self._of(value[1]), self._of(value[2])
        if not callable(function) or not isinstance(args, list) or not _are_names(keywords):
            raise _Wrong(f"{_shown(value)}: expected a function, a list and an object")
        return functools.partial(function, *args, **keywords)

    def _slice(self, value: Any) -> slice:
        ends = self._elements(value)
        if len(ends) != 3:
            raise _Wrong(f"{_shown(value)}: expected start, stop and step")
        return slice(*ends)

    def _complex(self, value: Any) -> complex:
        parts = self._elements(value)
        if [type(part) for part in parts] != [float, float]:
            raise _Wrong(f"{_shown(value)}: expected two numbers")
        return complex(*parts)


def _text(read: Callable[[str], Any]) -> Callable[[Decoder, Any], Any]:
    """Return a function that reads a value from text."""

    def value(_: Decoder, text: Any) -> Any:
        try:
            if not isinstance(text, str):
                raise ValueError("expected text")
            return read(text)
        except (ValueError, RuntimeError) as error:
            problem = str(error).partition("\n")[0]
            raise _Wrong(f"{_shown(text)} cannot be read: {problem}") from error

    return value


# Values that JSON lacks, by the mark that `encode` gives them.
_FORMS: dict[str, Callable[[Decoder, Any], Any]] = {
    "@bytes": _text(bytes.fromhex),
    "@complex": Decoder._complex,
    "@device": _text(torch.device),
    "@dict": Decoder._dict,
    "@float": _text(float),
    "@frozenset": lambda decoder, values: decoder._unsorted(frozenset, values),
    "@functools.partial": Decoder._partial,
    "@int": _text(lambda text: int(text, 16)),
    "@name": Decoder._name,
    "@path": _text(pathlib.Path),
    "@set": lambda decoder, values: decoder._unsorted(set, values),
    "@slice": Decoder._slice,
    "@tuple": lambda decoder, values: tuple(decoder._elements(values)),
}


def _rows(items: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a key and a value."""
    if not isinstance(items, list) or not all(isinstance(i, list) and len(i) == 2 for i in items):
        raise _Wrong(f"{_shown(items)}: expected pairs of a key and a value")
    return [(key, value) for key, value in items]


def _arguments(items: Any) -> list[tuple[str | int, Any]]:
    """Return pairs of an argument's name or position and something of it."""
    rows = _rows(items)
    if wrong := [name for name, _ in rows if type(name) not in (str, int)]:
        raise _Wrong(f"{_shown(wrong[0])} is no argument")
    return rows


def _are_names(keywords: Any) -> bool:
    return isinstance(keywords, dict) and all(isinstance(key, str) for key in keywords)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_arguments(node: fdl.Buildable) -> None:
    """Raise ValueError if Python code could not have given a node its arguments."""
    parameters = node.__signature_info__.parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    first = sum(kind is inspect.Parameter.POSITIONAL_ONLY for kind in kinds)
    for name in {**node.__arguments__, **node.__argument_tags__}:
        if isinstance(name, str):
            named = name in parameters and parameters[name].kind not in _UNNAMED
            known = named or inspect.Parameter.VAR_KEYWORD in kinds
        else:
            known = 0 <= name < first or (variadic and name >= kinds.index(_UNNAMED[1]))
        if not known:
            raise ValueError(f"{fdl.get_callable(node)!r} takes no {name!r}")

"""Read a config from values of JSON, as `encode` wrote them.

Nothing is called here but classes of the standard library: nodes are put together, not built.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fiddle as fdl
from fiddle.signatures import get_signature

from nanigpt.config.record.decode_values import NODES, ValueDecoder, Wrong, at, rows, shown
from nanigpt.config.record.encode_values import class_defaults, class_tags, same_json
from nanigpt.errors import UsageError

_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


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

    function: Callable[..., Any]
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
    sizes: dict[str, int] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)


class Decoder(ValueDecoder):
    """Reader of the values `config` and `classes` of a record.

    Attributes:
        config: The root.
        made: Every node, with its class.

    Raises:
        UsageError: The values are not those of a config, or name an object that a config file may
            not name. The message begins with the place in the config.
    """

    def __init__(self, config: Any, classes: Any):
        if not isinstance(classes, dict):
            raise UsageError(f"classes: expected an object, not {shown(classes)}")
        super().__init__()
        self._entries = classes
        self._classes: dict[str, _Class] = {}
        self._scope: _Scope | None = None
        self.made: list[tuple[fdl.Buildable, _Class]] = []
        try:
            self.config = self.of(config)
        except Wrong as error:
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
                    given[name] = value = _default(known, name)
                    if name not in known.changed:
                        same.append((node, name, value))
        return same

    def node(self, value: dict[str, Any], mark: str) -> fdl.Buildable:
        scope = self._scope
        if "@shared" in value:
            parts = value["@shared"]
            if not isinstance(parts, dict):
                raise Wrong(f"@shared: expected an object, not {shown(parts)}")
            self._scope = _Scope(scope, parts)
        known = self._class(value[mark])
        arguments: dict[str | int, Any] = {}
        tags = known.tags
        for name, part in value.items():
            if not name.startswith("@"):
                try:
                    arguments[name] = self.of(part)
                except Wrong as error:
                    error.elements.append(name)
                    raise
            elif name == "@args":
                for odd, further in _arguments(part):
                    if odd in value:
                        raise Wrong(f"two values for the argument {shown(odd)}")
                    with at(odd):
                        arguments[odd] = self.of(further)
            elif name == "@tags":
                own = {odd: self._tags(names) for odd, names in _arguments(part)}
                tags = {odd: found for odd, found in {**tags, **own}.items() if found}
            elif name not in (mark, "@shared"):
                raise Wrong(f"a node has no {name}")
        if "@shared" in value:
            assert self._scope is not None
            if unused := [name for name in parts if name not in self._scope.values]:
                raise Wrong(f"no node holds the shared part {unused[0]!r}")
            self._scope = scope
        metadata = fdl.BuildableTraverserMetadata(
            known.function,
            tuple(arguments),
            tags,
        )
        node = NODES[mark].__unflatten__(arguments.values(), metadata)
        self.made.append((node, known))
        return node

    def _class(self, short: Any) -> _Class:
        if not isinstance(short, str) or short not in self._entries:
            raise Wrong(f"classes has no {shown(short)}")
        if short not in self._classes:
            self._classes[short] = self._new_class(self._entries[short])
        return self._classes[short]

    def _new_class(self, entry: Any) -> _Class:
        if not isinstance(entry, dict) or entry.keys() != {"name", "defaults"}:
            raise Wrong(f"{shown(entry)} describes no class; expected its name and defaults")
        function, defaults = self.name(entry["name"]), entry["defaults"]
        if not isinstance(defaults, dict):
            raise Wrong(f"defaults of {entry['name']}: expected an object")
        try:
            today, tags = class_defaults(function), class_tags(function)
            parameters = get_signature(function).parameters
        except (TypeError, ValueError) as error:
            raise Wrong(f"{entry['name']} takes no arguments: {error}") from error
        changed = [
            name
            for name, value in defaults.items()
            if name not in today or not same_json(today[name], value)
        ]
        is_stale = any(name not in parameters for name in defaults)
        return _Class(function, tags, defaults, changed, is_stale)

    def _tags(self, names: Any) -> frozenset[type[fdl.Tag]]:
        if not isinstance(names, list):
            raise Wrong(f"tags: expected a list, not {shown(names)}")
        found = set()
        for name in names:
            try:
                tag = self.name(name)
            except Wrong:
                if isinstance(name, str) and name.startswith("nanigpt.tags:"):
                    continue  # a later version has no such tag, and what is built is the same
                raise
            if not (isinstance(tag, type) and issubclass(tag, fdl.Tag)):
                raise Wrong(f"{name} is not a tag")
            found.add(tag)
        return frozenset(found)

    def same(self, name: Any) -> Any:
        scope = self._scope
        while scope is not None and not (isinstance(name, str) and name in scope.parts):
            scope = scope.above
        if scope is None:
            raise Wrong(f"no node above has the shared part {shown(name)}")
        if name not in scope.values:
            if name in scope.busy:
                raise Wrong(f"the shared part {name!r} holds itself")
            scope.busy.add(name)
            here, before, self._scope = self._scope, self.size, scope
            scope.values[name] = self.of(scope.parts[name])
            scope.sizes[name] = self.size - before
            self._scope = here
        else:
            self.grow(scope.sizes[name])
        return scope.values[name]


def _default(known: _Class, name: str) -> Any:
    """Return a default of the day of the record; it holds no node."""
    try:
        return ValueDecoder().of(known.defaults[name])
    except Wrong as error:
        where = f"the recorded default of {name} of {known.function!r}"
        raise UsageError(f"{where}: {error}") from error.__cause__


def _arguments(items: Any) -> list[tuple[str | int, Any]]:
    """Return pairs of an argument's name or position and something of it."""
    found = rows(items)
    if wrong := [name for name, _ in found if type(name) not in (str, int)]:
        raise Wrong(f"{shown(wrong[0])} is no argument")
    if len(dict(found)) < len(found):
        raise Wrong(f"{shown(items)}: an argument stands there twice")
    return found


def unknown_argument(node: fdl.Buildable) -> str | int | None:
    """Return an argument or tag of a node that Python code could not have given it, or None."""
    parameters = node.__signature_info__.parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    first = sum(kind is inspect.Parameter.POSITIONAL_ONLY for kind in kinds)
    for name in {**node.__arguments__, **node.__argument_tags__}:
        if isinstance(name, str):
            named = name in parameters and parameters[name].kind not in _UNNAMED
            known = named or inspect.Parameter.VAR_KEYWORD in kinds
        else:
            rest = kinds.index(inspect.Parameter.VAR_POSITIONAL) if variadic else name + 1
            known = 0 <= name < first or name >= rest
        if not known:
            return name
    return None

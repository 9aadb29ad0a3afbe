"""Write a config as values of JSON.

A node is an object whose key `@` names its class, as `set:PATH=@NAME` does on the command line; its
other keys are arguments. `@partial`, `@arg_factory` and `@tagged` stand for the other kinds of
nodes. Keys of a node that begin with `@`:

    @times   this many equal neighbours in a list
    @shared  parts that are held in several places below the node, by name
    @args    arguments by position, or with a name that begins with `@`
    @tags    tags of an argument, where they are not those of the class

`{"@same": NAME}` is a part in `@shared`. Objects with another key that begins with `@` are values
that JSON lacks, such as `{"@tuple": [0.9, 0.95]}`.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Container, Iterator
from enum import Enum
from typing import Any

import fiddle as fdl
import torch
from fiddle.signatures import get_signature
from fiddle.tagging import TaggedValueCls

from nanigpt.config.paths import join
from nanigpt.config.record.names import recorded_name
from nanigpt.config.sharing import Sharing
from nanigpt.errors import UsageError

KINDS: dict[type[fdl.Buildable], str] = {
    fdl.Config: "@",
    fdl.Partial: "@partial",
    fdl.ArgFactory: "@arg_factory",
    TaggedValueCls: "@tagged",
}
_WORD = 2**64  # a larger integer is written in hexadecimal: its decimal digits are slow to read
_ADVICE = "use a plain value, a named function or a config of the object"


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values of JSON are written with the same text; 1, 1.0 and true are not."""
    return one == other and json.dumps(one) == json.dumps(other)


def class_defaults(function: Callable) -> dict[str, Any]:
    """Return the defaults of a callable as JSON, except those that JSON cannot hold."""
    made = {}
    if dataclasses.is_dataclass(function):
        made = {field.name: field.default_factory for field in dataclasses.fields(function)}
    found = {}
    for name, parameter in get_signature(function).parameters.items():
        factory = made.get(name, dataclasses.MISSING)
        default = parameter.default if factory is dataclasses.MISSING else factory()
        if default is inspect.Parameter.empty:
            continue
        values = _Values()
        encoded = values.of(default, "")
        if not values.problems:
            found[name] = encoded
    return found


def class_tags(function: Callable) -> dict[str | int, frozenset[type[fdl.Tag]]]:
    """Return the tags that a new node of a callable has, by argument."""
    tags = fdl.Config(function).__argument_tags__
    return {name: frozenset(given) for name, given in tags.items() if given}


class _Values:
    """Values without nodes, as JSON.

    Attributes:
        problems: `path: problem` of each value that cannot be recorded.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    def of(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if abs(value) < _WORD else {"@int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"@float": repr(value)}
        if isinstance(value, fdl.Buildable) or kind in (list, dict, set):
            return self.part(value, path)
        if kind is tuple:
            return {"@tuple": self.elements(value, path)}
        if kind is frozenset:
            return {"@frozenset": self._sorted(value, path)}
        if kind is complex:
            return {"@complex": [self.of(part, path) for part in (value.real, value.imag)]}
        if kind is bytes:
            return {"@bytes": value.hex()}
        if kind is slice:
            ends = (value.start, value.stop, value.step)
            return {"@slice": [self.of(end, path) for end in ends]}
        if kind is torch.device:
            return {"@device": str(value)}
        if kind is type(pathlib.Path()):
            return {"@path": str(value)}
        if kind is functools.partial:
            given = [self.of(part, path) for part in (list(value.args), dict(value.keywords))]
            return {"@functools.partial": [self.name(value.func, path), *given]}
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return {"@tuple": self.elements(value, path), "@of": self.name(kind, path)}
        return {"@name": self.name(value, path)}

    def part(self, value: Any, path: str) -> Any:
        """Return a node, list, dict or set as JSON."""
        if isinstance(value, list):
            return self.elements(value, path)
        if isinstance(value, set):
            return {"@set": self._sorted(value, path)}
        if isinstance(value, dict):
            return self.items(value, path)
        self.problems.append(f"{path}: a node")
        return None

    def elements(self, values: list | tuple, path: str) -> list[Any]:
        return [self.of(value, join(path, i)) for i, value in enumerate(values)]

    def items(self, value: dict, path: str) -> Any:
        items = [(key, self.of(value[key], join(path, (key,)))) for key in value]
        if all(type(key) is str and not key.startswith("@") for key in value):
            return dict(items)
        return {"@dict": [[self.of(key, path), encoded] for key, encoded in items]}

    def name(self, value: Any, path: str) -> str:
        try:
            return recorded_name(value)
        except UsageError as error:
            problem = str(error)
            if not isinstance(value, Enum) and not hasattr(value, "__qualname__"):
                problem = f"{value!r} cannot be recorded; {_ADVICE}"
            self.problems.append(f"{path or 'the root'}: {problem}")
            return ""

    def _sorted(self, values: set | frozenset, path: str) -> list[Any]:
        return sorted((self.of(value, path) for value in values), key=json.dumps)


@dataclasses.dataclass
class _Scope:
    """A node below which some parts are held several times.

    Attributes:
        inside: Ids of the parts that are held from nowhere else.
        names: Names of shared parts by id.
        shared: Those parts, each after what it holds.
    """

    inside: frozenset[int]
    names: dict[int, str] = dataclasses.field(default_factory=dict)
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)


class Encoder(_Values):
    """A config as JSON.

    Attributes:
        config: The root.
        classes: Name and defaults of each class or function, by a short name.
    """

    def __init__(self, cfg: fdl.Buildable):
        super().__init__()
        self._sharing = Sharing(cfg)
        self._scopes: list[_Scope] = []
        self._short: dict[int, str] = {}
        self._by_name: dict[str, str] = {}
        self._tags: dict[str, dict[str | int, frozenset]] = {}
        self.classes: dict[str, Any] = {}
        self.config = self._scope(cfg, "")

    def part(self, value: Any, path: str) -> Any:
        if not self._sharing.is_shared(value):
            return self._unshared(value, path)
        key, scopes = id(value), self._scopes
        depth = max(i for i, scope in enumerate(scopes) if key in scope.inside)
        home = scopes[depth]
        if key not in home.names:
            home.names[key] = name = _free_name(path, depth, home.names.values())
            self._scopes = scopes[: depth + 1]
            home.shared[name] = self._unshared(value, path)
            self._scopes = scopes
        return {"@same": home.names[key]}

    def _unshared(self, value: Any, path: str) -> Any:
        return (
            self._node(value, path)
            if isinstance(value, fdl.Buildable)
            else super().part(value, path)
        )

    def elements(self, values: list | tuple, path: str) -> list[Any]:
        found: list[Any] = []
        last, times = None, 1
        for i, value in enumerate(values):
            where = join(path, i)
            if not isinstance(value, fdl.Buildable) or self._sharing.is_shared(value):
                last = None
                found.append(self.of(value, where))
                continue
            encoded = self._scope(value, where)
            if last is not None and same_json(encoded, last):
                times += 1
                head, *rest = last.items()
                found[-1] = dict([head, ("@times", times), *rest])
            else:
                last, times = encoded, 1
                found.append(encoded)
        return found

    def _scope(self, node: fdl.Buildable, path: str) -> dict[str, Any]:
        scope = _Scope(self._sharing.internal(node))
        self._scopes = [*self._scopes, scope]
        encoded = self._node(node, path)
        self._scopes = self._scopes[:-1]
        if scope.shared:
            head, *rest = encoded.items()
            encoded = dict([head, ("@shared", scope.shared), *rest])
        return encoded

    def _node(self, node: fdl.Buildable, path: str) -> dict[str, Any]:
        if type(node) not in KINDS:
            self.problems.append(f"{path or 'the root'}: a {type(node).__name__}; use fdl.Config")
            return {}
        short = self._class(fdl.get_callable(node), path)
        found: dict[str, Any] = {KINDS[type(node)]: short}
        odd: dict[str | int, Any] = {}
        for name, value in fdl.ordered_arguments(node).items():
            encoded = self.of(value, join(path, name))
            if isinstance(name, int) or name.startswith("@"):
                odd[name] = encoded
            else:
                found[name] = encoded
        if odd:
            found["@args"] = [[name, value] for name, value in odd.items()]
        if tags := list(self._own_tags(node, self._tags[short], path)):
            found["@tags"] = tags
        return found

    def _class(self, function: Any, path: str) -> str:
        """Return the short name of a callable, which from then on is in `classes`."""
        if id(function) not in self._short:
            full = self.name(function, path)
            if full not in self._by_name:
                self._by_name[full] = self._new_class(full, function)
            self._short[id(function)] = self._by_name[full]
        return self._short[id(function)]

    def _new_class(self, full: str, function: Any) -> str:
        module, _, short = full.partition(":")
        for parent in reversed(module.split(".")):
            if short in self.classes:
                short = f"{parent}.{short}"
        self.classes[short] = {"name": full, "defaults": class_defaults(function)}
        self._tags[short] = class_tags(function)
        return short

    def _own_tags(self, node: fdl.Buildable, usual: dict, path: str) -> Iterator[Any]:
        """Yield argument and tags where the tags are not those of the class."""
        given = {name: frozenset(tags) for name, tags in node.__argument_tags__.items() if tags}
        if given == usual:
            return
        for name in {**usual, **given}:
            tags = given.get(name, frozenset())
            if tags != usual.get(name, frozenset()):
                yield [name, sorted(self.name(tag, path) for tag in tags)]


def _free_name(path: str, depth: int, taken: Container[str]) -> str:
    """Return a name for a shared part: that of the argument that holds it first.

    Below an element of a list it begins with `own`, so that it hides no name of a node above.
    """
    words = re.split(r"[.\[\]]+", path)
    base = next((word for word in reversed(words) if word.isidentifier()), "part")
    base = "own " * depth + base
    names = (base if i == 1 else f"{base} {i}" for i in itertools.count(1))
    return next(name for name in names if name not in taken)

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
import itertools
import re
from collections.abc import Container, Iterator
from typing import Any

import fiddle as fdl
from fiddle.tagging import TaggedValueCls

from nanigpt.config.paths import join
from nanigpt.config.record.encode_values import (
    ValueEncoder,
    class_defaults,
    class_tags,
    same_json,
)
from nanigpt.config.sharing import Sharing

KINDS: dict[type[fdl.Buildable], str] = {
    fdl.Config: "@",
    fdl.Partial: "@partial",
    fdl.ArgFactory: "@arg_factory",
    TaggedValueCls: "@tagged",
}


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


class Encoder(ValueEncoder):
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
        self._tags: dict[str, dict[str | int, frozenset[Any]]] = {}
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

    def elements(self, values: list[Any] | tuple[Any, ...], path: str) -> list[Any]:
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

    def _own_tags(self, node: fdl.Buildable, usual: dict[Any, Any], path: str) -> Iterator[Any]:
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

"""A content hash of what a config builds.

Equal for configs that build the same run, however they were written down: defaults spelled out or
not, dicts in another order, 1 for 1.0. Different where any value, class or sharing of nodes is.
The same on every machine, in every process. Tags are no part of it: they build nothing.
"""

import enum
import functools
import hashlib
import json
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import fiddle as fdl

from nanigpt.config.flatten import Container, Node, Shared, entries
from nanigpt.config.paths import arguments, join
from nanigpt.config.record.names import full_name
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.errors import UsageError

_CONSTANTS = ("device", "dtype", "layout", "memory_format")  # of torch


def fingerprint(cfg: Any) -> str:
    """32 hexadecimal digits; the first eight serve as a name.

    Raises:
        UsageError: a value has no content to hash (a lambda, an object); the message has its path.
    """
    try:
        text = json.dumps(_Content().of(cfg, ""), separators=(",", ":"))
    except RecursionError as error:
        raise UsageError(f"the config {TOO_DEEP}") from error
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def nameless(cfg: fdl.Buildable) -> Iterator[str]:
    """Yield a message for each value without content that could be compared."""
    for entry in entries(cfg):
        if entry.is_default:  # the class has it; it is part of the class's content
            continue
        try:
            _of_leaf(entry.value, entry.path)
        except UsageError as error:
            yield str(error)


def same_content(one: Any, other: Any, *, path: str) -> bool:
    """Return whether two values from `leaves` at `path` have equal fingerprints.

    1 equals 1.0, but not True. A value without content equals only itself.
    """
    if one is other:
        return True
    try:
        return _of_leaf(one, path) == _of_leaf(other, path)
    except UsageError:
        return False


def _of_leaf(value: Any, path: str) -> Any:
    """Return the content of a value from `leaves`."""
    if isinstance(value, Node):
        return {"node": value.kind, "callable": _name(value.function, path)}
    if isinstance(value, Shared):
        return {"shared": value.path}
    if isinstance(value, Container):
        return {"container": _kind(value.value, path)}
    return _Content().of(value, path)


class _Content:
    """A value as JSON in which equal content is equal text.

    Nodes are numbered in the order of the walk; a node met again is its number, which is how
    sharing is told from equality. So are lists, dicts and sets, which what is built could change.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, int] = {}
        self._containers: dict[int, int] = {}

    def of(self, value: Any, path: str) -> Any:
        if isinstance(value, fdl.Buildable):
            if id(value) in self._nodes:
                return {"shared": self._nodes[id(value)]}
            self._nodes[id(value)] = len(self._nodes)
            return {
                "node": type(value).__name__,
                "callable": _name(fdl.get_callable(value), path),
                "arguments": self._arguments(value, path),
            }
        if isinstance(value, (list, dict, set)):
            if id(value) in self._containers:
                return {"shared container": self._containers[id(value)]}
            self._containers[id(value)] = len(self._containers)
        if isinstance(value, dict):
            keyed = [[self.of(k, path), k] for k in value]
            keyed.sort(key=lambda pair: json.dumps(pair[0]))
            items = [[k, self.of(value[key], join(path, (key,)))] for k, key in keyed]
            return {_kind(value, path): items}
        if isinstance(value, (list, tuple)):
            return {_kind(value, path): [self.of(v, join(path, i)) for i, v in enumerate(value)]}
        if isinstance(value, (set, frozenset)):
            members = [self.of(v, path) for v in value]
            kind = "set" if isinstance(value, set) else "frozenset"
            return {kind: sorted(members, key=json.dumps)}
        if isinstance(value, slice):
            return {"slice": [self.of(v, path) for v in (value.start, value.stop, value.step)]}
        if isinstance(value, functools.partial):
            given = [_Content().of(part, path) for part in (value.args, value.keywords)]
            return {"partial": _name(value.func, path), "arguments": given}
        return _plain(value, path)

    def _arguments(self, node: fdl.Buildable, path: str) -> list[Any]:
        given, values = fdl.ordered_arguments(node), arguments(node)
        found = []
        for name in sorted(values, key=str):
            if name in given:
                content = self.of(values[name], join(path, name))
            else:
                content = _default(values[name])
            found.append([name, content])
        return found


def _default(value: Any) -> Any:
    """Return the content of a default, so that an equal value that was set has the same one.

    A default without content is represented by the callable's name.
    """
    try:
        return _Content().of(value, "")
    except UsageError:
        return {"default": True}


def _kind(value: Any, path: str) -> str:
    """`list`, `tuple` or `dict`, or the name of a class derived from them."""
    if type(value) in (dict, list, tuple):
        return type(value).__name__
    return _name(type(value), path)


def _plain(value: Any, path: str) -> Any:
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": f"{_name(type(value), path)}.{value.name}"}
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return {"number": str(int(value)) if whole else float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return {"callable": _name(value, path)}
    if isinstance(value, PurePath):
        return {"path": value.as_posix()}
    if type(value).__module__ == "torch" and type(value).__name__ in _CONSTANTS:
        return {type(value).__name__: str(value)}
    raise UsageError(
        f"{path}: {value!r} has no content to compare; use a plain value, a named function or a "
        "config of the object"
    )


def _name(function: Any, path: str) -> str:
    try:
        return full_name(function)
    except UsageError as error:
        raise error.within(path or "the root") from error

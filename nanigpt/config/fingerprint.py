"""A content hash of what a config builds.

Equal for configs that build the same run, however they were written down: defaults spelled out or
not, dicts in another order, 1 for 1.0. Different where any value, class or sharing of nodes is.
The same on every machine, in every process. Tags are no part of it: they build nothing.
"""

import enum
import hashlib
import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiddle as fdl

from nanigpt.config.leaves import Node, Shared, leaves
from nanigpt.config.paths import arguments, join
from nanigpt.errors import UsageError


def fingerprint(cfg: Any) -> str:
    """32 hexadecimal digits; the first eight serve as a name.

    Raises:
        UsageError: a value has no content to hash (a lambda, an object); the message has its path.
    """
    text = json.dumps(_canonical(cfg, "", {}), separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def nameless(cfg: fdl.Buildable) -> Iterator[str]:
    """What of a config has no content to compare, one message each."""
    for path, value in leaves(cfg):
        try:
            if isinstance(value, Node):
                _name(value.function, path)
            elif not isinstance(value, Shared):
                _canonical(value, path, {})
        except UsageError as error:
            yield str(error)


def _canonical(value: Any, path: str, numbers: dict[int, int]) -> Any:
    """`value` as JSON in which equal content is equal text.

    Nodes are numbered in the order of the walk; a node met again is its number, which is how
    sharing is told from equality.
    """
    if isinstance(value, fdl.Buildable):
        if id(value) in numbers:
            return {"shared": numbers[id(value)]}
        numbers[id(value)] = len(numbers)
        given = arguments(value)
        return {
            "node": type(value).__name__,
            "callable": _name(fdl.get_callable(value), path),
            "arguments": [
                [name, _canonical(given[name], join(path, name), numbers)]
                for name in sorted(given, key=str)
            ],
        }
    if isinstance(value, dict):
        keyed = [[_canonical(k, path, numbers), k] for k in value]
        keyed.sort(key=lambda pair: json.dumps(pair[0]))
        return {
            "dict": [[k, _canonical(value[key], join(path, (key,)), numbers)] for k, key in keyed]
        }
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_canonical(v, join(path, i), numbers) for i, v in enumerate(value)]}
    if isinstance(value, (set, frozenset)):
        members = [_canonical(v, path, numbers) for v in value]
        return {"set": sorted(members, key=json.dumps)}
    return _leaf(value, path)


def _leaf(value: Any, path: str) -> Any:
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": f"{_name(type(value), path)}.{value.name}"}
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return {"number": str(int(value)) if whole else float(value).hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return {"callable": _name(value, path)}
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return {"dtype": str(value)}
    raise UsageError(
        f"{path}: {value!r} has no content to compare; use a plain value, a named function or a "
        "config of the object"
    )


def _name(function: Any, path: str) -> str:
    name = getattr(function, "__qualname__", "")
    if name.endswith("<lambda>"):
        code = function.__code__
        raise UsageError(
            f"{path or 'the root'}: a lambda ({Path(code.co_filename).name}:{code.co_firstlineno}) "
            "has no name to record it by; name the function: def it at the top level of a module"
        )
    if "<" in name or not name:  # <locals>
        raise UsageError(
            f"{path or 'the root'}: {function!r} cannot be named from another process; "
            "define it at the top level of a module"
        )
    module = inspect.getmodule(function)
    return f"{module.__name__ if module else ''}:{name}"

"""Write values without nodes as JSON, each in one form."""

import dataclasses
import functools
import inspect
import json
import math
import pathlib
from collections.abc import Callable
from enum import Enum
from typing import Any

import fiddle as fdl
import torch
from fiddle.signatures import get_signature

from nanigpt.config.paths import join
from nanigpt.config.record.names import recorded_name
from nanigpt.errors import UsageError

_WORD = 2**64  # a larger integer is written in hexadecimal: its decimal digits are slow to read
MOST_BITS = 4096  # of an integer; Python does not print much larger ones
_ADVICE = "use a plain value, a named function or a config of the object"


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values of JSON are written with the same text; 1, 1.0 and true are not."""
    return one == other and json.dumps(one) == json.dumps(other)


def class_defaults(function: Callable[..., Any]) -> dict[str, Any]:
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
        values = ValueEncoder()
        encoded = values.of(default, "")
        if not values.problems:
            found[name] = encoded
    return found


def class_tags(function: Callable[..., Any]) -> dict[str | int, frozenset[type[fdl.Tag]]]:
    """Return the tags that a new node of a callable has, by argument."""
    tags = fdl.Config(function).__argument_tags__
    return {name: frozenset(given) for name, given in tags.items() if given}


class ValueEncoder:
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
            if value.bit_length() > MOST_BITS:
                self.problems.append(f"{path}: an integer of more than {MOST_BITS} bits")
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
            if not all(end is None or type(end) is int for end in ends):
                self.problems.append(f"{path}: {value!r} is no slice of integers")
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

    def elements(self, values: list[Any] | tuple[Any, ...], path: str) -> list[Any]:
        return [self.of(value, join(path, i)) for i, value in enumerate(values)]

    def items(self, value: dict[Any, Any], path: str) -> Any:
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

    def _sorted(self, values: set[Any] | frozenset[Any], path: str) -> list[Any]:
        return sorted((self.of(value, path) for value in values), key=json.dumps)

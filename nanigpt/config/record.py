"""Configs as JSON: written beside a run's results, and loaded back equal."""

import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch
from fiddle._src.experimental import serialization  # the public module hides Serialization

from nanigpt.config.leaves import Node, leaves, show_value
from nanigpt.config.provenance import mark
from nanigpt.config.registry import extension_packages
from nanigpt.errors import UsageError

_DTYPES = {
    name: value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype) and str(value) == f"torch.{name}"
}
for _name in _DTYPES:
    serialization.register_constant("torch", _name, compare_by_identity=True)


_ABSENT = object()


class AllowList(serialization.PyrefPolicy):
    """What a config file may name: classes and functions defined in packages of recipes, Fiddle's
    nodes, containers, and dtypes. Anything else is refused before it is imported."""

    _BUILTINS = {"dict", "list", "tuple", "set", "frozenset", "slice", "bytes"}
    _FIDDLE = {"Config", "Partial", "ArgFactory", "BuildableTraverserMetadata", "NoValue"}

    def allows_import(self, module: str, symbol: str) -> bool:
        package = module.partition(".")[0]
        if package == "builtins":
            return symbol in self._BUILTINS
        if package == "fiddle":
            return symbol in self._FIDDLE
        if module == "torch":
            return symbol in _DTYPES
        if module.startswith(("nanigpt.cli", "nanigpt.config")):
            return False  # no components, but commands and file access
        return package in extension_packages()

    def allows_value(self, value: Any) -> bool:
        # A module of ours may have imported `os`: only what it defines itself is allowed.
        if isinstance(value, torch.dtype):
            return True
        package = (getattr(value, "__module__", None) or "").partition(".")[0]
        return package in ("builtins", "fiddle") or package in extension_packages()

    def __str__(self) -> str:
        return f"classes and functions of {', '.join(sorted(extension_packages()))}"


class _Serialization(serialization.Serialization):
    """Upstream's, faster: names are counted per prefix, where upstream tries 1, 2, 3, ... for every
    object; a class is looked up once; objects do not list every path that leads to them."""

    def __init__(self, *args, **kwargs):
        self._counts: dict[str, int] = collections.defaultdict(int)
        self._pyrefs: dict[Any, dict[str, str]] = {}
        super().__init__(*args, **kwargs)

    def _unique_name(self, value: Any) -> str:
        hint_type = fdl.get_callable(value) if isinstance(value, fdl.Buildable) else type(value)
        hint = getattr(hint_type, "__name__", "object").lower()
        self._counts[hint] += 1
        return f"{hint}_{self._counts[hint]}"

    def _pyref(self, value: Any, current_path: Any) -> dict[str, str]:
        if value not in self._pyrefs:
            self._pyrefs[value] = super()._pyref(value, current_path)
        return self._pyrefs[value]

    def _serialize(self, value: Any, current_path: Any, all_paths: Any = None) -> Any:
        return super()._serialize(value, current_path)


def dump(cfg: fdl.Buildable) -> str:
    """The config as JSON, a line for each object.

    Raises:
        UsageError: it holds a value that cannot be written, such as a lambda.
    """
    try:
        result = _Serialization(cfg, AllowList()).result
    except (serialization.UnserializableValueError, serialization.PyrefPolicyError) as error:
        raise UsageError(f"the config cannot be recorded: {error}") from error
    objects = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.pop("objects").items()]
    rest = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()]
    listed = ' "objects": {\n' + ",\n".join(objects) + "\n }"
    return "{\n" + ",\n".join([*rest, listed]) + "\n}\n"


def load(path: str | Path) -> fdl.Buildable:
    """Reads what `dump` wrote.

    Raises:
        UsageError: there is no such file, it is not a config, or it names what is not allowed.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    try:
        cfg = serialization.load_json(Path(path).read_text(), pyref_policy=AllowList())
    except serialization.PyrefPolicyError as error:
        raise UsageError(
            f"{path} names {error.module}.{error.symbol}, which a config file may not; allowed are "
            f"{AllowList()}, and of packages with an entry point of the group nanigpt"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UsageError(f"{path} is not a config that this version can read: {error}") from error
    if not isinstance(cfg, fdl.Buildable):
        raise UsageError(f"{path} holds {type(cfg).__name__}, not a config")
    mark(cfg, str(path))
    return cfg


def differences(old: fdl.Buildable, new: fdl.Buildable) -> list[str]:
    """`path: old -> new` of each value that differs."""
    return [
        f"{path}: {'(absent)' if a is None else a} -> {'(absent)' if b is None else b}"
        for path, a, b in changes(old, new)
    ]


def changes(old: fdl.Buildable, new: fdl.Buildable) -> Iterator[tuple[str, str | None, str | None]]:
    """Yields (path, old, new) of each value that differs; None where a side lacks the path.

    Of what only one side has, the topmost path alone is told.
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    below = ()  # how paths begin that lie below one which has children on one side only
    for path in {**before, **after}:
        if below and path.startswith(below):
            continue
        sides = [values.get(path, _ABSENT) for values in (before, after)]
        # As the fingerprint has it: 1 is 1.0, but not True.
        if sides[0] == sides[1] and isinstance(sides[0], bool) == isinstance(sides[1], bool):
            continue
        if isinstance(sides[0], Node) != isinstance(sides[1], Node):
            below = (f"{path}.", f"{path}[")
        yield path, *(None if side is _ABSENT else show_value(side) for side in sides)

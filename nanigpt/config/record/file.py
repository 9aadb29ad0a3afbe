"""Configs as JSON: written beside a run's results, and loaded back equal."""

import collections
import functools
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish
from fiddle._src.experimental import serialization  # the public module hides Serialization

from nanigpt.config.flatten import Container, Node, leaves, show_value
from nanigpt.config.record.fingerprint import same_content
from nanigpt.config.record.foreign import refuse_foreign
from nanigpt.config.record.names import AllowList, library_name
from nanigpt.config.record.provenance import mark
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.config.registry import place_today, upgrades
from nanigpt.errors import UsageError

_ABSENT = object()

# Values that Fiddle does not know how to write.
serialization.register_node_traverser(
    complex,
    flatten_fn=lambda value: ((value.real, value.imag), None),
    unflatten_fn=lambda values, _: complex(*values),
    path_elements_fn=lambda _: (daglish.Attr("real"), daglish.Attr("imag")),
)
serialization.register_node_traverser(
    functools.partial,
    flatten_fn=lambda value: ((value.func, value.args, value.keywords), None),
    unflatten_fn=lambda values, _: functools.partial(values[0], *values[1], **values[2]),
    path_elements_fn=lambda _: tuple(map(daglish.Attr, ("func", "args", "keywords"))),
)
for _kind in (torch.device, Path, type(Path())):
    serialization.register_node_traverser(
        _kind,
        flatten_fn=lambda value: ((str(value),), None),
        unflatten_fn=lambda values, _, kind=_kind: kind(values[0]),
        path_elements_fn=lambda _: (serialization.IdentityElement(),),
    )


class _Serialization(serialization.Serialization):
    """A faster version of Fiddle's serialization.

    Names are counted for each prefix, where Fiddle tries 1, 2, 3, ... for every object. A class is
    looked up once. Objects do not list every path that leads to them.
    """

    def __init__(self, *args, **kwargs):
        self._counts: dict[str, int] = collections.defaultdict(int)
        self._pyrefs: dict[int, tuple[Any, dict[str, str]]] = {}
        super().__init__(*args, **kwargs)

    def _unique_name(self, value: Any) -> str:
        hint_type = fdl.get_callable(value) if isinstance(value, fdl.Buildable) else type(value)
        hint = getattr(hint_type, "__name__", "object").lower()
        self._counts[hint] += 1
        return f"{hint}_{self._counts[hint]}"

    def _pyref(self, value: Any, current_path: Any) -> dict[str, str]:
        if id(value) not in self._pyrefs:
            if known := library_name(value):
                reference = {"type": "pyref", "module": known[0], "name": known[1]}
            else:
                reference = super()._pyref(value, current_path)
            self._pyrefs[id(value)] = (value, reference)  # kept, so that no id is used twice
        return self._pyrefs[id(value)][1]

    def _serialize(self, value: Any, current_path: Any, all_paths: Any = None) -> Any:
        if library_name(value):  # functions and constants that upstream does not know
            return self._pyref(value, current_path)
        return super()._serialize(value, current_path)


def dump(cfg: fdl.Buildable) -> str:
    """Return a config as JSON, with a line for each object.

    Raises:
        UsageError: it holds a value that cannot be written, such as a lambda.
    """
    try:
        result = _Serialization(cfg, AllowList()).result
    except (
        serialization.UnserializableValueError,
        serialization.PyrefPolicyError,
        AttributeError,  # it has a name, by which it is not found
        ImportError,
    ) as error:
        raise UsageError(f"the config cannot be recorded: {error}") from error
    except RecursionError as error:
        raise UsageError(f"the config cannot be recorded: it {TOO_DEEP}") from error
    objects = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.pop("objects").items()]
    rest = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()]
    listed = ' "objects": {\n' + ",\n".join(objects) + "\n }"
    return "{\n" + ",\n".join([*rest, listed]) + "\n}\n"


def load(path: str | Path) -> fdl.Buildable:
    """Load a config that `dump` wrote.

    Raises:
        UsageError: there is no such file, it is not a config, or it names what is not allowed.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    refuse_foreign(path)
    try:
        text = json.dumps(_at_places_of_today(json.loads(Path(path).read_text())))
        cfg = serialization.load_json(text, pyref_policy=AllowList())
        if isinstance(cfg, fdl.Buildable):
            for upgrade in upgrades():
                upgrade(cfg)
            _check_nodes(cfg)
    except serialization.PyrefPolicyError as error:
        raise UsageError(
            f"{path} names {error.module}.{error.symbol}, which a config file may not; allowed are "
            f"{AllowList()}, and of packages with an entry point of the group nanigpt"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{path} is not a config: it {TOO_DEEP}, or holds itself") from error
    except Exception as error:  # reading a damaged file may raise anything
        raise UsageError(f"{path} is not a config that this version can read: {error}") from error
    if not isinstance(cfg, fdl.Buildable):
        raise UsageError(f"{path} holds {type(cfg).__name__}, not a config")
    mark(cfg, str(path))
    return cfg


def _at_places_of_today(value: Any) -> Any:
    """JSON of a record, in which what was moved since has its new place."""
    if isinstance(value, list):
        return [_at_places_of_today(element) for element in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "pyref":
        module, name = place_today(value["module"], value["name"])
        return {**value, "module": module, "name": name}
    return {key: _at_places_of_today(element) for key, element in value.items()}


def is_record(path: Path) -> bool:
    """Whether a file looks like one that `dump` wrote: other programs write a config.json too."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"root", "objects"} <= found.keys()


def _check_nodes(cfg: fdl.Buildable) -> None:
    """Raise ValueError if Python code could not have made a node."""
    for node, path in daglish.iterate(cfg):
        if not isinstance(node, fdl.Buildable):
            continue
        where = daglish.path_str(path).removeprefix(".") or "the root"
        parameters = node.__signature_info__.parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        for name in {**node.__arguments__, **node.__argument_tags__}:
            known = name in parameters or inspect.Parameter.VAR_KEYWORD in kinds
            if not (known if isinstance(name, str) else isinstance(name, int)):
                raise ValueError(f"{where}: {fdl.get_callable(node)!r} takes no {name!r}")
        for tags in node.__argument_tags__.values():
            if not all(isinstance(tag, type) and issubclass(tag, fdl.Tag) for tag in tags):
                raise ValueError(f"{where}: {set(tags)} are not tags")


def differences(old: fdl.Buildable, new: fdl.Buildable) -> list[str]:
    """`path: old -> new` of each value that differs."""
    return [
        f"{path or 'the root'}: {a or '(absent)'} -> {b or '(absent)'}"
        for path, a, b in changes(old, new)
    ]


def changes(old: fdl.Buildable, new: fdl.Buildable) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (path, old, new) of each value that differs; None means that a side lacks the path.

    If only one side has a part of the config, only its topmost path is yielded.
    """
    before, after = (dict(leaves(cfg, containers=True)) for cfg in (old, new))
    below: tuple[
        str, ...
    ] = ()  # how paths begin that lie below one which has children on one side only
    for path in {**before, **after}:
        if below and path.startswith(below):
            continue
        sides = [values.get(path, _ABSENT) for values in (before, after)]
        if all(side is not _ABSENT for side in sides) and same_content(*sides, path=path):
            continue
        parents = [isinstance(side, (Node, Container)) for side in sides]
        if parents[0] != parents[1]:
            below = (f"{path}.", f"{path}[")
        one, other = (None if side is _ABSENT else show_value(side) for side in sides)
        yield path, one, other

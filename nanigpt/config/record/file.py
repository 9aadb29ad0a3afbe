"""Configs as JSON: written beside a run's results, and loaded back equal.

The format is that of a file which a person reads, and `git diff` shows by argument:

    format   2
    nanigpt  version that wrote the file
    imports  modules that were imported by --import
    classes  name and defaults of every class or function that a node names
    config   the root, as `encode` describes it

A node has the arguments that were set. What it left to the defaults of its class is in `classes`,
so that a default that changes later does not change the run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.flatten import Container, Node, leaves, show_value
from nanigpt.config.record.decode import Decoder, unknown_argument
from nanigpt.config.record.encode import Encoder
from nanigpt.config.record.fingerprint import same_content
from nanigpt.config.record.first_format import converted, is_first_format
from nanigpt.config.record.foreign import refuse_foreign
from nanigpt.config.record.layout import lay_out
from nanigpt.config.record.provenance import mark
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.config.registry import imports, upgrades
from nanigpt.errors import MissingImport, UsageError
from nanigpt.version import __version__

FORMAT = 2
_KEYS = ("format", "nanigpt", "imports", "classes", "config")
_SHOWN = 5  # problems in one message
_ABSENT = object()


def dump(cfg: fdl.Buildable) -> str:
    """Return a config as JSON, with a line for each argument.

    Raises:
        UsageError: it holds values that cannot be written, such as a lambda.
    """
    encoded = _encoded(cfg)
    if encoded.problems:
        more = len(encoded.problems) - _SHOWN
        shown = encoded.problems[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise UsageError(f"the config cannot be recorded: {'; '.join(shown)}")
    parts = (FORMAT, __version__, list(imports()), encoded.classes, encoded.config)
    return lay_out(dict(zip(_KEYS, parts, strict=True))) + "\n"


def unrecordable(cfg: fdl.Buildable) -> list[str]:
    """Return `path: problem` of each value that `dump` cannot write, with its remedy."""
    return list(dict.fromkeys(_encoded(cfg).problems))


def _encoded(cfg: fdl.Buildable) -> Encoder:
    try:
        return Encoder(cfg)
    except RecursionError as error:
        raise UsageError(f"the config cannot be recorded: it {TOO_DEEP}") from error


def load(path: str | Path) -> fdl.Buildable:
    """Load a config that `dump` wrote, or version 0.1.

    Raises:
        UsageError: there is no such file, it is not a config, or it names what is not allowed.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    refuse_foreign(path)
    try:
        record = json.loads(Path(path).read_bytes(), object_pairs_hook=_object)
    except RecursionError as error:
        raise UsageError(f"{path} is not a config: it {TOO_DEEP}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a config that this version can read: {error}") from error
    try:
        cfg = _config(converted(record) if is_first_format(record) else record)
    except RecursionError as error:
        raise UsageError(f"{path} is not a config: it {TOO_DEEP}, or holds itself") from error
    except UsageError as error:
        told = f"{path}: {error}"
        if missing := _missing_imports(record):
            raise MissingImport(
                f"{told}; it was written with code that is not imported", module=missing[0]
            ) from error
        raise UsageError(told) from error
    mark(cfg, str(path))
    return cfg


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, unless it says a thing twice: a reader may miss the second."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {name!r} twice")
    return found


def _config(record: Any) -> fdl.Buildable:
    """Return the config of a record."""
    if not isinstance(record, dict) or "format" not in record:
        raise UsageError("it is not a config that nanigpt wrote")
    if record["format"] != FORMAT or type(record["format"]) is not int:
        raise UsageError(
            f"it has format {record['format']!r}, and this version reads format {FORMAT}; it was "
            f"written by nanigpt {record.get('nanigpt')!r}"
        )
    if record.keys() != set(_KEYS):
        raise UsageError(f"expected {', '.join(_KEYS)}, not {', '.join(record)}")
    decoded = Decoder(record["config"], record["classes"])
    cfg = decoded.config
    unknown = any(unknown_argument(node) is not None for node, _ in decoded.made)
    is_old = record["nanigpt"] != __version__ or decoded.is_stale or unknown
    same = decoded.fill(everything=is_old)
    if is_old:
        for upgrade in upgrades():
            try:
                upgrade(cfg)
            except Exception as error:  # the record may be damaged, and users write upgrades
                raise UsageError(
                    f"{upgrade.__name__} cannot upgrade it: {type(error).__name__}: {error}"
                ) from error
        for node, name, value in same:
            if node.__arguments__.get(name, _ABSENT) is value:
                del node.__arguments__[name]
    for node, _ in decoded.made:
        wrong = unknown_argument(node)
        if wrong is not None and (where := _place(cfg, node)):
            function = fdl.get_callable(node)
            raise UsageError(
                f"{where}: {function.__module__}.{function.__qualname__} takes no {wrong!r}"
            )
    return cfg


def _place(cfg: fdl.Buildable, node: fdl.Buildable) -> str:
    """Return the path of a node, or "" if an upgrade took it out."""
    for value, path in daglish.iterate(cfg):
        if value is node:
            return daglish.path_str(path).removeprefix(".") or "the root"
    return ""


def _missing_imports(record: Any) -> list[str]:
    """Return the modules that a record needs and nobody imported."""
    named = record.get("imports") if isinstance(record, dict) else None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return []
    return [name for name in named if name not in imports()]


def is_record(path: Path) -> bool:
    """Whether a file looks like one that `dump` wrote: other programs write a config.json too."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return is_first_format(found) or (isinstance(found, dict) and set(_KEYS) <= found.keys())


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

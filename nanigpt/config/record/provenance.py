"""Who set each value of a config, and what it was before.

Fiddle keeps the history of every argument, each entry with a location. Here that is the line of the
recipe or fiddler that ran, and the line below it where the value was set, if that is another one. A
directive of the command line is the location of what it set.
"""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import history

from nanigpt.config.flatten import show_value
from nanigpt.config.registry import entrances, extension_packages
from nanigpt.config.sharing import nodes

# Folders whose code only carries out what a recipe or a fiddler says.
_MACHINERY = tuple(
    os.path.join(folder, "") for folder in (Path(fdl.__file__).parent, Path(__file__).parents[1])
)


@dataclass(frozen=True)
class _Line(history.Location):
    """A line of code that set a value.

    Attributes:
        inside: the line of the recipe or fiddler that called this one, if there is one.
        directive: the directive that called the recipe or fiddler, if there is one.
        copied: what was said of the value that this one is a copy of.
    """

    inside: tuple[str, int] | None = None
    directive: str = ""
    copied: str = ""


def explain(node: fdl.Buildable, name: str | int) -> str:
    """Who set an argument, and all that it was before; empty where it has its default.

    For example `--config=tag:LearningRate=1e-3, was 0.0003 in experiments/llama3.py:142`.
    """
    entries = _entries(node, name)
    if not entries:
        return ""
    told = [_where(entries[-1].location)]
    for earlier in reversed(entries[:-1]):
        word = "by" if _is_edit(earlier.location) else "in"
        told.append(f"was {show_value(earlier.new_value)} {word} {_where(earlier.location)}")
    parameter = node.__signature_info__.parameters.get(name)
    default = parameter.default if parameter else inspect.Parameter.empty
    # Code that sets a value first, such as a recipe, says what it is and not what it was before.
    by_code = isinstance(entries[0].location, _Line) or not _is_edit(entries[0].location)
    if not by_code and default is not inspect.Parameter.empty:
        told.append(f"was {show_value(default)} by default")
    return ", ".join(told)


def origin(node: fdl.Buildable, name: str | int) -> str:
    """Who set an argument last; empty where it has its default."""
    entries = _entries(node, name)
    return _where(entries[-1].location) if entries else ""


def _entries(node: fdl.Buildable, name: str | int) -> list[history.HistoryEntry]:
    """Return the settings of an argument that are left, without those that changed nothing."""
    if name not in fdl.ordered_arguments(node):
        return []
    found: list[history.HistoryEntry] = []
    for entry in node.__argument_history__.get(name, ()):
        if _sets(entry):
            if found and _said(found[-1]) == _said(entry):
                found.pop()
            found.append(entry)
    return found


def _sets(entry: history.HistoryEntry) -> bool:
    return entry.kind is history.ChangeKind.NEW_VALUE and entry.new_value is not history.DELETED


def _said(entry: history.HistoryEntry) -> tuple[str, str]:
    return show_value(entry.new_value), _where(entry.location)


@contextlib.contextmanager
def set_by(text: str) -> Iterator[None]:
    """Give whatever is set within the location `text`: a directive, or a file."""
    location = history.Location(text, 0, None)
    with history.custom_location(lambda: location):
        yield


@contextlib.contextmanager
def called_by(directive: str, cfg: fdl.Buildable | None = None) -> Iterator[None]:
    """Give whatever a recipe or a fiddler sets within its line and the directive that called it.

    A value that a fiddler copied, such as a learning rate for a new optimizer, keeps what was said
    of the original.

    Args:
        directive: The directive.
        cfg: The config that a fiddler edits; None for a recipe.
    """
    before = [] if cfg is None else _edited(cfg)
    with history.custom_location(functools.partial(_locate, directive)):
        yield
    if cfg is not None and before:
        _follow_copies(cfg, directive, before)


def mark(cfg: fdl.Buildable, text: str) -> None:
    """Give everything in `cfg` the location `text`."""
    with set_by(text):
        for node in nodes(cfg):
            for name, value in fdl.ordered_arguments(node).items():
                node.__argument_history__.add_new_value(name, value)


def _locate(directive: str) -> history.Location:
    """Return the line that sets a value now, and that of the recipe or fiddler around it."""
    frame = inspect.currentframe()
    line: tuple[str, int] | None = None
    while frame is not None:
        code = frame.f_code
        if not _is_machinery(code.co_filename):
            line = line or (code.co_filename, frame.f_lineno)
            if id(code) in entrances:
                return _line(*line, (code.co_filename, frame.f_lineno), directive)
        frame = frame.f_back
    return _line(*(line or ("", 0)), None, directive)


@functools.cache
def _is_machinery(filename: str) -> bool:
    return filename.startswith(_MACHINERY)


@functools.cache  # the same lines set many values, and a frozen dataclass is slow to make
def _line(file: str, number: int, inside: tuple[str, int] | None, directive: str) -> _Line:
    return _Line(file, number, None, None if inside == (file, number) else inside, directive)


def _is_edit(location: history.Location) -> bool:
    """Whether a directive other than the recipe set a value."""
    text = _where(location)
    return text.startswith("--config=") and not text.startswith("--config=config:")


def _where(location: history.Location) -> str:
    if not location.line_number:
        return location.filename
    line = f"{_short(location.filename)}:{location.line_number}"
    if not isinstance(location, _Line):
        return line
    if location.inside is not None:
        file, number = location.inside
        line = f"{_short(file)}:{number} through {line}"
    text = f"{location.directive} ({line})" if location.directive else line
    return f"{text}, a copy of what {location.copied} set" if location.copied else text


@functools.cache
def _short(filename: str) -> str:
    """Return a source file's path relative to the folder from which it is imported."""
    if "ipykernel" in filename or filename.startswith("<ipython"):
        return "notebook"
    packages = [sys.modules[name] for name in extension_packages() if name in sys.modules]
    parents = [Path(p.__file__).parents[:2][-1] for p in packages if p.__file__ is not None]
    roots = [os.path.join(os.path.abspath(path), "") for path in [*sys.path, *map(str, parents)]]
    inside = [filename.removeprefix(root) for root in roots if filename.startswith(root)]
    return min(inside, key=len, default=filename)


def _edited(cfg: fdl.Buildable) -> list[tuple[Any, str, Any, str]]:
    """Return (value, argument, its tags, origin) of everything that directives set."""
    found = []
    for node, name, entries, last in _settings(cfg):
        if _is_edit(entries[last].location):
            tags = frozenset(node.__argument_tags__.get(name, ()))
            found.append((entries[last].new_value, name, tags, _where(entries[last].location)))
    return found


def _follow_copies(cfg: fdl.Buildable, directive: str, before: list[Any]) -> None:
    """Say of values that a directive copied where they come from.

    A copy is the same object as another argument with the same name, or with a tag in common.
    Python has only one object for each small number and each name, so that nothing is said of them.
    """
    for node, name, entries, last in _settings(cfg):
        entry = entries[last]
        if getattr(entry.location, "directive", "") != directive:
            continue
        tags = node.__argument_tags__.get(name, ())
        for value, other, known, text in before:
            same = value is entry.new_value and not _is_common(value)
            if same and (other == name or known.intersection(tags)):
                entries[last] = replace(entry, location=replace(entry.location, copied=text))
                break


def _is_common(value: Any) -> bool:
    """Return whether places that have nothing to do with each other may hold the same object."""
    return value is None or isinstance(value, (bool, str)) or value in range(-5, 257)


def _settings(
    cfg: fdl.Buildable,
) -> Iterator[tuple[fdl.Buildable, Any, list[history.HistoryEntry], int]]:
    """Yield each argument that was set, with its history and the index of the last setting."""
    for node in nodes(cfg):
        for name, entries in node.__argument_history__.items():
            last = next((i for i in reversed(range(len(entries))) if _sets(entries[i])), None)
            if last is not None and name in node.__arguments__:
                yield node, name, entries, last


# Recipes and fiddlers that Python calls have the same locations as those of the command line.
_everywhere = history.custom_location(functools.partial(_locate, ""))
_everywhere.__enter__()

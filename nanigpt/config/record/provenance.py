"""Who set each value of a config, and what it was before.

Fiddle keeps the history of every argument, each entry with the line of code that made it. Here that
is a line of the recipe or fiddler, not of a library below it, and what a directive of the command
line set is told to come from the directive.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fiddle as fdl
from fiddle import history, selectors

from nanigpt.config.flatten import show_value
from nanigpt.config.registry import extension_packages
from nanigpt.config.sharing import nodes

# Frames that stand between a recipe or a fiddler and the value that it sets.
_LIBRARY = tuple(str(inspect.getsourcefile(each)) for each in (fdl.set_tagged, selectors.select))
_OURS = tuple(
    os.path.normpath(f"nanigpt/config/{name}.py")
    for name in ("compose/overrides", "compose/tagged", "record/provenance")
)
_FIDDLE = os.path.join(os.path.dirname(fdl.__file__), "")
for _file in (*_LIBRARY, *_OURS):
    history.add_exclude_location(_file)


@dataclass(frozen=True)
class _Ordered(history.Location):
    """A line of code that ran because a directive called it."""

    directive: str


def explain(node: fdl.Buildable, name: str | int) -> str:
    """Who set an argument, and what it was before; empty where it has its default.

    For example `--config=tag:LearningRate=1e-3, was 0.0003 in experiments/llama3.py:41`.
    """
    if name not in fdl.ordered_arguments(node):
        return ""
    entries = [
        entry
        for entry in node.__argument_history__.get(name, ())
        if entry.kind is history.ChangeKind.NEW_VALUE and entry.new_value is not history.DELETED
    ]
    if not entries:
        return ""
    *earlier, last = entries
    text = _where(last.location)
    if earlier:
        return f"{text}, was {show_value(earlier[-1].new_value)} in {_where(earlier[-1].location)}"
    parameter = node.__signature_info__.parameters.get(name)
    default = parameter.default if parameter else inspect.Parameter.empty
    if not text.startswith("--config=") or default is inspect.Parameter.empty:
        return text  # a recipe and a record say what a value is, not what it was changed from
    return f"{text}, was {show_value(default)} by default"


@contextlib.contextmanager
def set_by(text: str) -> Iterator[None]:
    """Whatever is set within is told to come from `text`: a directive, or a file."""
    location = history.Location(text, 0, None)
    with history.custom_location(lambda: location):
        yield


@contextlib.contextmanager
def called_by(directive: str) -> Iterator[None]:
    """Whatever code sets within is told by its line, and the directive that called it."""

    def locate() -> history.Location:
        code = _caller()
        return _Ordered(code.filename, code.lineno, code.function, directive)

    with history.custom_location(locate):
        yield


def _caller() -> inspect.Traceback:
    """Return the line of code outside of Fiddle and of `_OURS` that runs now."""
    frame = inspect.currentframe()
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_FIDDLE) and not filename.endswith(_OURS):
            return inspect.Traceback(filename, frame.f_lineno, frame.f_code.co_name, None, None)
        frame = frame.f_back
    raise AssertionError("a config was edited by no code")


def mark(cfg: fdl.Buildable, text: str) -> None:
    """Tells that everything in `cfg` comes from `text`."""
    with set_by(text):
        for node in nodes(cfg):
            for name, value in fdl.ordered_arguments(node).items():
                node.__argument_history__.add_new_value(name, value)


def _where(location: history.Location) -> str:
    if not location.line_number:
        return location.filename
    line = f"{_short(location.filename)}:{location.line_number}"
    return f"{location.directive} ({line})" if isinstance(location, _Ordered) else line


def _short(filename: str) -> str:
    """Return a source file's path relative to the folder from which it is imported."""
    if "ipykernel" in filename or filename.startswith("<ipython"):
        return "notebook"
    packages = [sys.modules[name] for name in extension_packages() if name in sys.modules]
    parents = [Path(p.__file__).parents[1] for p in packages if p.__file__ is not None]
    roots = [os.path.join(os.path.abspath(path), "") for path in [*sys.path, *map(str, parents)]]
    inside = [filename.removeprefix(root) for root in roots if filename.startswith(root)]
    return min(inside, key=len, default=filename)

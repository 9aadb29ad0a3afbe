"""A config as text, as Python, as a graph or as a page."""

import json
import math
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.flatten import Shared, entries, head, leaves, show_value
from nanigpt.config.record.provenance import explain
from nanigpt.config.recursion import refuses_depth
from nanigpt.config.view.outline import Row, outline
from nanigpt.errors import UsageError

FORMATS = ("tree", "flat", "python", "json", "dot", "html")

_DIM, _PLAIN = "\033[2m", "\033[0m"


@refuses_depth
def render(
    cfg: fdl.Buildable,
    *,
    format: str = "tree",
    color: bool = False,
    why: bool = False,
    title: str | None = None,
) -> str:
    """Render a config in one of `FORMATS`.

    tree: nested, units and tags behind values, equal neighbours of a list folded
    (`layers[0:32] x32`), nodes that stood before named by their path. flat: a line `path = value`
    each. python: a module that builds an equal config. json: `{path: value}`, where what JSON has
    no value for is text. dot: a graph for Graphviz. html: a page that folds and searches.

    Args:
        cfg: The config.
        format: The format.
        color: Whether to dim defaults, for a terminal.
        title: Heading of a page; by default the root's class.
        why: Whether trees and flat lists show the place that set each value, and its value before.

    Raises:
        UsageError: The format is unknown, or a value cannot be written in it.
    """
    if format not in FORMATS:
        raise UsageError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    if why and format not in ("tree", "flat"):
        raise UsageError(f"--why goes with --format=tree and --format=flat, not {format}")
    if format == "tree":
        return "\n".join(_tree(outline(cfg), "", color=color, why=why))
    if format == "flat":
        return "\n".join(_flat(cfg, why=why))
    if format == "python":
        from nanigpt.config.view.source import to_python

        return to_python(cfg).rstrip("\n")
    if format == "dot":
        from nanigpt.config.view.graph import dot

        return dot(cfg)
    if format == "html":
        from nanigpt.config.view.html import html

        return html(cfg, title=title)
    return json.dumps({path: _json(value) for path, value in leaves(cfg)}, indent=1)


def _json(value: Any) -> Any:
    """Return a value that JSON can hold, with lists for tuples, or else its text."""
    if type(value) in (list, tuple):
        return [_json(child) for child in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _json(child) for key, child in value.items()}
    finite = type(value) is float and math.isfinite(value)
    if finite or type(value) in (type(None), bool, int, str):
        return value
    return show_value(value)


def _tree(row: Row, indent: str, *, color: bool, why: bool) -> Iterator[str]:
    if isinstance(row.value, fdl.Buildable):
        text = f"{row.label}: {head(row.value)}" if row.label else str(head(row.value))
        text += f" {Shared(row.first[0])}" if row.first else ""
    elif row.children:
        text = f"{row.label}:"
    else:
        text = f"{row.label} = {show_value(row.value)}" + (f" {row.unit}" if row.unit else "")
    text += f"  {row.times('x')}" if row.times("x") else ""
    text += "".join(f"  #{tag.__name__}" for tag in row.tags)
    origin = explain(row.owner, row.argument) if why and row.owner is not None else ""
    line = f"{indent}{text}" + (f"  <- {origin}" if origin else "")
    yield f"{_DIM}{line}{_PLAIN}" if row.is_default and color else line
    for child in row.children:
        yield from _tree(child, indent + "  ", color=color, why=why)


def _flat(cfg: fdl.Buildable, *, why: bool) -> Iterator[str]:
    for entry in entries(cfg):
        line = f"{entry.path or '(root)'} = {show_value(entry.value)}"
        origin = explain(entry.owner, entry.argument) if why and entry.owner is not None else ""
        yield line + (f"  <- {origin}" if origin else "")

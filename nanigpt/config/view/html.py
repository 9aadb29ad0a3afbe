"""A config as a tree in HTML that folds and searches itself, for a notebook or a browser.

All that it needs is inside: it works without a network. Without scripts it still folds.
"""

import functools
import inspect
import zlib
from collections.abc import Iterator
from html import escape
from importlib import resources
from string import Template
from typing import Any

import fiddle as fdl

from nanigpt.config.flatten import Shared, head, show_value
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.provenance import explain
from nanigpt.config.recursion import refuses_depth
from nanigpt.config.view.outline import Row, outline
from nanigpt.config.view.parameter_sizes import Size, n_parameters, sizes
from nanigpt.errors import UsageError

_LONGEST_VALUE = 400  # characters
_LONGEST_PROBLEM = 2000
_LONGEST_PREVIEW = 80


def html(cfg: fdl.Buildable, *, title: str | None = None) -> str:
    """`tree_html` as a page of its own."""
    return page(tree_html(cfg, title=title), title=title or str(head(cfg)))


@refuses_depth
def tree_html(cfg: fdl.Buildable, *, title: str | None = None) -> str:
    """Return a config as a collapsible tree with a search, for embedding into a page.

    Equal neighbours of a list are folded. Hovering shows the place that set a value, the meaning of
    a tag, and the documentation of a class. Nodes show their parameters and shapes, found by a
    build on meta. If the config does not build, the tree shows the reason.

    Args:
        cfg: The config.
        title: Heading; by default the root's class.
    """
    root = outline(cfg)
    try:
        measured, problem = sizes(cfg), ""
    except UsageError as error:
        measured, problem = (
            {},
            f'<p class="problem">no sizes: {escape(_cut(str(error), _LONGEST_PROBLEM))}</p>\n',
        )
    return asset("tree.html").substitute(
        css=asset("base.css").template + asset("tree.css").template,
        script=asset("tree.js").template,
        title=escape(title or str(head(cfg))),
        about=_about(cfg),
        problem=problem,
        rows="\n".join(_Tree(measured).lines(root)),
    )


def page(body: str, *, title: str) -> str:
    """Return a whole document around a piece of HTML."""
    return asset("page.html").substitute(title=escape(title), body=body)


@functools.cache
def asset(name: str) -> Template:
    """Return a template from `static/`."""
    return Template(resources.files(__package__).joinpath("static", name).read_text("utf-8"))


def hue(name: str) -> int:
    """Return a hue for a name, in degrees, which is the same everywhere."""
    return zlib.crc32(name.encode()) % 360


def count(n: int) -> str:
    """Return a number with three digits, such as `8.03 B`."""
    if n < 10_000:
        return f"{n:,}"
    value, units = float(n), iter("KMBTPE")
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def _about(cfg: fdl.Buildable) -> str:
    try:
        identity = fingerprint(cfg)
    except UsageError as error:  # something in it has no content to compare
        return f'<span class="faint" title="{escape(str(error))}">no fingerprint</span>'
    return f'<span class="faint" title="fingerprint {identity}">{identity[:8]}</span>'


class _Tree:
    """Rows as nested `details`."""

    def __init__(self, measured: dict[int, Size]):
        self._measured = measured

    def lines(self, row: Row) -> Iterator[str]:
        path = escape(row.path)
        css = "row default" if row.is_default else "row"
        if not row.children:
            yield f'<div class="{css}" data-path="{path}">{self._line(row)}</div>'
            return
        opened = "" if row.path else " open"
        yield f'<details data-path="{path}"{opened}><summary class="{css}">{self._line(row)}'
        yield '</summary><div class="below">'
        for child in row.children:
            yield from self.lines(child)
        yield "</div></details>"

    def _line(self, row: Row) -> str:
        name = f'<span class="name">{escape(row.label)}</span>' if row.label else ""
        if isinstance(row.value, fdl.Buildable):
            parts = [name, *self._node(row)]
        elif row.children:  # a dict
            parts = [name]
        else:
            parts = [f"{name} =", _value(row)]
        parts += [_tag(tag) for tag in row.tags]
        if row.children:
            parts.append(_preview(row))
        return " ".join(part for part in parts if part)

    def _node(self, row: Row) -> Iterator[str]:
        about = f"{_describe(fdl.get_callable(row.value))}\n{_explain(row)}".strip()
        yield f'<span class="class" title="{escape(about)}">{escape(str(head(row.value)))}</span>'
        if times := row.times("×"):
            yield f'<span class="times">{times}</span>'
        if row.first:
            path, target = row.first
            text = escape(str(Shared(path)))
            yield f'<a href="#" data-to="{escape(target)}">{text}</a>'
        elif id(row.value) in self._measured:
            yield self._size(row)

    def _size(self, row: Row) -> str:
        every = [self._measured[id(value)] for value in row.values]
        total, each = n_parameters(every), n_parameters(every[:1])
        parts = [f"{count(total)} parameters"] if total else []
        if total > each:
            parts.append(f"{count(each)} each")
        parts += [f"{name} {list(shape)}" for name, shape in every[0].tensors]
        exact = escape(f"{total:,} parameters")
        text = escape(" · ".join(parts))
        return f'<span class="size" title="{exact}">{text}</span>' if parts else ""


def _value(row: Row) -> str:
    if row.value is fdl.NO_VALUE:
        return '<span class="unset">required, not set</span>'
    text = _cut(show_value(row.value), _LONGEST_VALUE)
    kind = "value"
    if isinstance(row.value, str):
        kind += " text"
    elif isinstance(row.value, (int, float)):
        kind += " number"
    told = _explain(row)
    about = f' title="{escape(told)}"' if told else ""
    unit = f' <span class="unit">{escape(row.unit)}</span>' if row.unit else ""
    return f'<span class="{kind}{" set" if told else ""}"{about}>{escape(text)}</span>{unit}'


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def _explain(row: Row) -> str:
    origin = explain(row.owner, row.argument) if row.owner is not None else ""
    return f"set by {origin}" if origin else ""


def _tag(tag: type[fdl.Tag]) -> str:
    name = escape(tag.__name__)
    about = escape(f"{tag.__name__}: {tag.description}")
    return f'<span class="tag" style="--hue:{hue(tag.__name__)}" title="{about}">{name}</span>'


def _preview(row: Row) -> str:
    """Return a preview of the values that were set below a closed row."""
    told = [
        f"{child.label}={show_value(child.value)}"
        for child in row.children
        if not child.is_default and not child.children and child.value is not fdl.NO_VALUE
    ]
    text = ", ".join(told)
    if len(text) > _LONGEST_PREVIEW:
        text = text[:_LONGEST_PREVIEW] + "…"
    return f'<span class="preview">{escape(text)}</span>' if text else ""


def _describe(function: Any) -> str:
    """Return module, name and first line of documentation of a class or function."""
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
    # A class without documentation of its own would be described as its base.
    text = inspect.cleandoc(getattr(function, "__doc__", None) or "")
    return f"{name}\n{text.splitlines()[0]}" if text else name

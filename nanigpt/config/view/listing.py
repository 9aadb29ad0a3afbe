"""The list of all that a command line can name: recipes, fiddlers, components, and tags."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.flatten import show_value
from nanigpt.config.paths import arguments
from nanigpt.config.registry import components, fiddlers, recipes, sources

_COLUMN = 44


def listing(cfg: fdl.Buildable | None = None) -> str:
    """List everything that `--config` takes, with signature and first sentence of documentation.

    Args:
        cfg: The config whose tags are listed with their values.
    """
    sections = [
        ("Recipes, --config=config:NAME", _functions(recipes(), 0)),
        ("Sources, --config=NAME:PATH", _functions(sources(), 1)),
        ("Fiddlers, --config=fiddler:NAME or fiddler:NAME(ARGUMENTS)", _functions(fiddlers(), 1)),
        ("Components, --config='set:PATH=@NAME(ARGUMENTS)'", _functions(components(), 0)),
    ]
    if cfg is not None:
        sections.append(("Tags of this config, --config=tag:NAME=VALUE", _tags(cfg)))
    lines = []
    for title, rows in sections:
        lines += ["", title, *rows]
    return "\n".join(lines[1:])


def _functions(table: dict[str, Callable], skipped: int) -> Iterator[str]:
    """Yield the rows of a registry; users do not give the first `skipped` parameters."""
    for name, function in table.items():
        parameters = list(inspect.signature(function).parameters.values())[skipped:]
        form = f"{name}({', '.join(map(str, parameters))})" if parameters else name
        yield _row(form, _first_sentence(function))


def _tags(cfg: fdl.Buildable) -> Iterator[str]:
    """Yield each tag with its values and its meaning."""
    values: dict[Any, list[Any]] = {}
    for node, _ in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            given = arguments(node)
            for name, tags in node.__argument_tags__.items():
                for tag in tags:
                    values.setdefault(tag, []).append(given.get(name, fdl.NO_VALUE))
    for tag in sorted(values, key=lambda tag: tag.__name__):
        distinct = list(dict.fromkeys(map(show_value, values[tag])))
        more = f", ... ({len(distinct)} values)" if distinct[3:] else ""
        yield _row(f"{tag.__name__} = {', '.join(distinct[:3])}{more}", _first_sentence(tag))


def _row(form: str, meaning: str) -> str:
    if len(form) > _COLUMN:
        return f"  {form}\n  {'':<{_COLUMN}}  {meaning}"
    return f"  {form:<{_COLUMN}}  {meaning}".rstrip()


def _first_sentence(documented: Any) -> str:
    """Return the first sentence of a docstring, also if it has several lines."""
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    text = " ".join(paragraph.split())
    end = re.search(r"[.!?](?=\s+[^a-z\s])", text)
    return text[: end.end()] if end else text

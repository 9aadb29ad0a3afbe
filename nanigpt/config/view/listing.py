"""The list of all that a command line can name: recipes, fiddlers, components, and tags."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.flatten import show_value
from nanigpt.config.paths import arguments
from nanigpt.config.registry import components, family, fiddlers, recipes, sources
from nanigpt.config.view.slots import slots

_COLUMN = 44
_LONG = 200  # characters of a signature that is printed with its recipe
_PATHS = 3  # places that are printed with a component


def listing(cfg: fdl.Buildable | None = None) -> str:
    """List everything that `--config` takes, with signature and first sentence of documentation.

    Args:
        cfg: The config whose tags are listed with their values.
    """
    places = {} if cfg is None else slots(cfg)
    sections = [
        ("Recipes, --config=config:NAME or config:NAME(ARGUMENTS)", _recipes()),
        ("Sources, --config=NAME:PATH", _functions(sources(), 1)),
        ("Fiddlers, --config=fiddler:NAME or fiddler:NAME(ARGUMENTS)", _functions(fiddlers(), 1)),
        ("Components, --config='set:PATH=@NAME(ARGUMENTS)'", _functions(components(), 0, places)),
    ]
    if cfg is not None:
        sections.append(("Tags of this config, --config=tag:NAME=VALUE", _tags(cfg)))
    lines = []
    for title, rows in sections:
        lines += ["", title, *rows]
    return "\n".join(lines[1:])


def _functions(
    table: dict[str, Callable[..., Any]], skipped: int, places: dict[str, list[str]] | None = None
) -> Iterator[str]:
    """Yield the rows of a registry; users do not give the first `skipped` parameters."""
    for name, function in table.items():
        yield _row(_form(name, function, skipped), _first_sentence(function))
        paths = (places or {}).get(name, [])
        if paths:
            more = f", and {len(paths) - _PATHS} more" if paths[_PATHS:] else ""
            yield f"  {'':<{_COLUMN}}  fits {', '.join(paths[:_PATHS])}{more}"


def _recipes() -> Iterator[str]:
    """Yield the rows of recipes, and then the arguments that recipes of a family share."""
    shared: dict[tuple[str, ...], set[str]] = {}
    for name, function in recipes().items():
        form = _form(name, function, 0)
        if len(form) > _LONG:
            shared.setdefault(tuple(inspect.signature(function).parameters), set()).add(
                family(function)
            )
            form = f"{name}(...)"
        yield _row(form, _first_sentence(function))
    for parameters, families in shared.items():
        yield f"  arguments for {', '.join(sorted(families))}:"
        text = ", ".join(parameters)
        yield textwrap.fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 4)


def _form(name: str, function: Callable[..., Any], skipped: int) -> str:
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    return f"{name}({', '.join(map(str, parameters))})" if parameters else name


def _tags(cfg: fdl.Buildable) -> Iterator[str]:
    """Yield each tag with its values and its meaning."""
    values: dict[Any, list[Any]] = {}
    for node, _ in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            given = arguments(node)
            for name, tags in node.__argument_tags__.items():
                for tag in (t for t in tags if not hasattr(t, "set_instead")):
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

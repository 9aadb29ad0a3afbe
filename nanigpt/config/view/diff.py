"""What differs between two configs, path by path, with equal changes of list elements folded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.paths import Element, child, expand, first_index, join, parse_path
from nanigpt.config.record.file import changes
from nanigpt.config.recursion import refuses_depth
from nanigpt.errors import UsageError

FORMATS = ("text", "json", "python", "html")


@dataclass(frozen=True)
class Change:
    """One value that differs; None stands for a path that one side lacks.

    Attributes:
        where: the path, or a slice of it where neighbours changed alike.
    """

    paths: tuple[str, ...]
    old: str | None
    new: str | None
    where: str


@refuses_depth
def diff(old: fdl.Buildable, new: fdl.Buildable) -> list[Change]:
    """Every value that differs, in the order of the config; linear in its size."""
    changed = list(changes(old, new))
    if not changed:
        return []
    sides: list[dict[tuple[Element, ...], Any]] = [{(): old}, {(): new}]
    elements = {path: _elements(path, sides) for path, *_ in changed}
    grouped: dict[tuple[Any, ...], list[str]] = {}
    for path, before, after in changed:
        # The first index of a path is that of the layer; the rest of the path must agree.
        at = first_index(elements[path])
        rest = (elements[path][:at], elements[path][at:][1:]) if at is not None else path
        grouped.setdefault((rest, before, after), []).append(path)
    return [
        Change(tuple(paths), before, after, _where([elements[path] for path in paths]))
        for (_, before, after), paths in grouped.items()
    ]


def _elements(path: str, sides: list[dict[tuple[Element, ...], Any]]) -> tuple[Element, ...]:
    """Return the elements of a path, where the containers tell list indices from dict keys.

    Args:
        path: The path.
        sides: For each config, the values found so far by their elements.
    """
    for values in sides:
        walked: tuple[Element, ...] = ()
        try:
            for element in parse_path(path):
                if walked not in values:
                    values[walked] = child(values[walked[:-1]], walked[-1], path)
                walked = (*walked, *expand(values[walked], element, path))
            return walked
        except UsageError:  # the other side may have it
            continue
    return (path,)  # a key that cannot be typed as a path: there is nothing to fold


def _where(paths: list[tuple[Element, ...]]) -> str:
    at = first_index(paths[0])
    text = ""
    for i, element in enumerate(paths[0]):
        if i == at and len(paths) > 1:
            indices = [index for path in paths if isinstance(index := path[i], int)]
            text += f"[{_span(indices)}]"
        else:
            text = join(text, element)
    return text


def _span(numbers: list[int]) -> str:
    step = numbers[1] - numbers[0]
    if numbers == list(range(numbers[0], numbers[-1] + 1, step)):
        return f"{numbers[0]}:{numbers[-1] + 1}" + (f":{step}" if step > 1 else "")
    return ",".join(map(str, numbers))


def render(
    old: fdl.Buildable,
    new: fdl.Buildable,
    *,
    format: str = "text",
    names: tuple[str, str] = ("old", "new"),
) -> str:
    """Describe the change from one config to another, in one of `FORMATS`.

    text: lines `path: old -> new`. json: the same lines as objects. python: a module with a fiddler
    that turns the old config into the new one. html: a page with both side by side.

    Args:
        old: One config.
        new: The other.
        format: The format.
        names: Headings of both in a page.

    Raises:
        UsageError: The format is unknown, or a value cannot be written in it.
    """
    if format not in FORMATS:
        raise UsageError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    if format == "python":
        from nanigpt.config.view.edit import to_fiddler

        return to_fiddler(old, new).rstrip("\n")
    if format == "html":
        from nanigpt.config.view.html import page
        from nanigpt.config.view.html_diff import diff_html

        body = diff_html(diff(old, new), old=names[0], new=names[1])
        return page(body, title=" and ".join(names))
    if format == "json":
        rows = [{"path": c.where, "old": c.old, "new": c.new} for c in diff(old, new)]
        return json.dumps(rows, indent=1)
    return "\n".join(lines(diff(old, new)))


def lines(changes: list[Change]) -> Iterator[str]:
    """Yield changes as `path: old -> new`."""
    for change in changes:
        before = "(absent)" if change.old is None else change.old
        after = "(absent)" if change.new is None else change.new
        times = f"  x{len(change.paths)}" if len(change.paths) > 1 else ""
        yield f"{change.where}: {before} -> {after}{times}"

"""What differs between two configs, path by path, with equal changes of list elements folded."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import fiddle as fdl

from nanigpt.config.record import changes
from nanigpt.errors import UsageError

FORMATS = ("text", "json", "python", "html")

_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Change:
    """One value that differs; None stands for a path that one side lacks."""

    paths: tuple[str, ...]
    old: str | None
    new: str | None

    @property
    def where(self) -> str:
        """The path, or a slice of it where neighbours changed alike."""
        if len(self.paths) == 1:
            return self.paths[0]
        numbers = [int(_INDEX.search(path)[1]) for path in self.paths]
        step = numbers[1] - numbers[0]
        if numbers == list(range(numbers[0], numbers[-1] + 1, step)):
            bounds = f"{numbers[0]}:{numbers[-1] + 1}" + (f":{step}" if step > 1 else "")
        else:
            bounds = ",".join(map(str, numbers))
        return _INDEX.sub(f"[{bounds}]", self.paths[0], count=1)


def diff(old: fdl.Buildable, new: fdl.Buildable) -> list[Change]:
    """Every value that differs, in the order of the config; linear in its size."""
    grouped: dict[tuple, list[str]] = {}
    for path, before, after in changes(old, new):
        # The first index of a path is that of the layer; the rest of the path must agree.
        key = (_INDEX.sub("[]", path, count=1), before, after)
        grouped.setdefault(key, []).append(path)
    return [Change(tuple(paths), before, after) for (_, before, after), paths in grouped.items()]


def render(old: fdl.Buildable, new: fdl.Buildable, *, format: str = "text") -> str:
    """What turns one config into another, in one of `FORMATS`.

    text: lines `path: old -> new`. json: the same as objects. python: a module with a fiddler that
    turns the old into the new. html: a page with both side by side.

    Raises:
        UsageError: the format is unknown, or a value cannot be written in it.
    """
    if format not in FORMATS:
        raise UsageError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    if format == "python":
        from nanigpt.config.edit import to_fiddler

        return to_fiddler(old, new).rstrip("\n")
    if format == "html":
        from nanigpt.config.html import page
        from nanigpt.config.html_diff import diff_html

        return page(diff_html(diff(old, new)), title="diff")
    if format == "json":
        rows = [{"path": c.where, "old": c.old, "new": c.new} for c in diff(old, new)]
        return json.dumps(rows, indent=1)
    return "\n".join(lines(diff(old, new)))


def lines(changes: list[Change]) -> Iterator[str]:
    """Changes as `path: old -> new`."""
    for change in changes:
        before = "(absent)" if change.old is None else change.old
        after = "(absent)" if change.new is None else change.new
        times = f"  x{len(change.paths)}" if len(change.paths) > 1 else ""
        yield f"{change.where}: {before} -> {after}{times}"

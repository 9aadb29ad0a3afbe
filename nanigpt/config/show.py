"""A config as text: a tree with repeated elements folded, or one line per value."""

import json
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.leaves import Shared, head, leaves, show_value
from nanigpt.config.paths import arguments, join
from nanigpt.errors import UsageError

FORMATS = ("tree", "flat", "json")


def render(cfg: fdl.Buildable, *, format: str = "tree", color: bool = False) -> str:
    """The config in one of `FORMATS`.

    tree: nested, tags behind values, equal neighbours of a list folded (`layers[0:32] x32`),
    defaults dimmed where `color`, nodes that stood before named by their path. flat: a line
    `path = value` each. json: `{path: value}`.

    Raises:
        UsageError: the format is unknown.
    """
    if format not in FORMATS:
        raise UsageError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    if format == "tree":
        return "\n".join(_Tree(color).lines(cfg))
    values = {path: show_value(value) for path, value in leaves(cfg)}
    if format == "flat":
        return "\n".join(f"{path or '(root)'} = {value}" for path, value in values.items())
    return json.dumps(values, indent=1)


class _Tree:
    """Walks a config once; remembers where each node was shown first."""

    def __init__(self, color: bool):
        self._color = color
        self._first: dict[int, str] = {}

    def lines(self, cfg: fdl.Buildable) -> Iterator[str]:
        yield str(head(cfg))
        yield from self._node(cfg, "", "  ")

    def _node(self, node: fdl.Buildable, path: str, indent: str) -> Iterator[str]:
        self._first[id(node)] = path
        given = fdl.ordered_arguments(node)
        for name, value in arguments(node).items():
            tags = sorted(tag.__name__ for tag in node.__argument_tags__.get(name, ()))
            suffix = "".join(f"  #{tag}" for tag in tags)
            yield from self._value(
                str(name), value, join(path, str(name)), indent, suffix, dim=name not in given
            )

    def _value(
        self, label: str, value: Any, path: str, indent: str, suffix: str = "", dim: bool = False
    ) -> Iterator[str]:
        if isinstance(value, fdl.Buildable):
            if id(value) in self._first:
                yield f"{indent}{label}: {head(value)} {Shared(self._first[id(value)])}"
                return
            yield f"{indent}{label}: {head(value)}{suffix}"
            yield from self._node(value, path, indent + "  ")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, fdl.Buildable) for v in value):
            for start, stop in _runs(value):
                one = stop == start + 1
                index = f"[{start}]" if one else f"[{start}:{stop}]"
                times = "" if one else f"  x{stop - start}"
                # A run is shown by its first element, at its place in the list.
                yield from self._value(
                    f"{label}{index}", value[start], f"{path}[{start}]", indent, times
                )
        elif isinstance(value, dict) and value:
            yield f"{indent}{label}:{suffix}"
            for key, child in value.items():
                yield from self._value(repr(key), child, join(path, (key,)), indent + "  ")
        else:
            text = f"{indent}{label} = {show_value(value)}{suffix}"
            yield f"\033[2m{text}\033[0m" if dim and self._color else text


def _runs(values: list[Any]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours that would build the same."""
    start, prints = 0, [fingerprint(value) for value in values]
    for stop in range(1, len(values) + 1):
        if stop == len(values) or prints[stop] != prints[start]:
            yield start, stop
            start = stop

"""Paths into a DAG: `model.layers[-1].attention.wq.out_dim`, `model.layers[::4]`."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.registry import nearest
from nanigpt.errors import UsageError

_PART = re.compile(
    r"\.?(?P<name>[A-Za-z_]\w*)"
    r"|\[(?P<index>-?\d+)\]"
    r"|\[(?P<slice>\*|(?:-?\d+)?:(?:-?\d+)?(?::(?:-?[1-9]\d*)?)?)\]"
    r"|\[(?P<quote>['\"])(?P<key>.*?)(?P=quote)\]"
)

# An argument's name, a list's index, several of a list's indices, a dict's key.
Element = str | int | slice | tuple[str]


def parse_path(text: str) -> list[Element]:
    """Splits a path into arguments (str), list indices (int, slice) and dict keys (1-tuples).

    Raises:
        UsageError: it is not a path, or names something private (`__fn_or_cls__`).
    """
    elements: list[Element] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None or (position and match["name"] and text[position] != "."):
            raise UsageError(f"{text!r} is not a path; expected names and indices: a.b[0].c['key']")
        if match["name"]:
            if match["name"].startswith("__"):
                raise UsageError(f"{text!r}: {match['name']} is not an argument of a config")
            elements.append(match["name"])
        elif match["index"]:
            elements.append(int(match["index"]))
        elif match["slice"]:
            bounds = "" if match["slice"] == "*" else match["slice"]
            parts = [int(part) if part else None for part in bounds.split(":")]
            elements.append(slice(*parts) if bounds else slice(None))
        else:
            elements.append((match["key"],))
        position = match.end()
    if not elements:
        raise UsageError("the path is empty; expected names and indices: a.b[0].c")
    return elements


def follow(container: Any, element: Element, walked: str) -> Any:
    """The child of `container`, which lies at the path `walked`.

    Raises:
        UsageError: there is none; the message names what there is.
    """
    check_element(container, element, walked)
    if isinstance(element, str):
        if element not in fdl.ordered_arguments(container):
            raise UsageError(f"{join(walked, element)} is not set, so nothing lies below it")
        return getattr(container, element)
    return container[element[0] if isinstance(element, tuple) else element]


def check_element(container: Any, element: Element, walked: str) -> None:
    """Raises UsageError where `container` at `walked` has no such child to read or set."""
    where = walked or "the config"
    if isinstance(element, str):
        if not isinstance(container, fdl.Buildable):
            raise UsageError(
                f"{where} is {type(container).__name__} {container!r}: it has no arguments"
            )
        known = argument_names(container)
        if element not in known:
            callable_name = fdl.get_callable(container).__name__
            raise UsageError(
                f"{where} ({callable_name}) has no {element!r}; {nearest(element, known)}"
            )
    elif isinstance(element, int):
        if not isinstance(container, (list, tuple)):
            raise UsageError(f"{where} is {type(container).__name__}: it has no index [{element}]")
        if not -len(container) <= element < len(container):
            raise UsageError(
                f"{where} has {len(container)} elements: expected an index from "
                f"{-len(container)} to {len(container) - 1}, not {element}"
            )
    elif not isinstance(container, dict):
        raise UsageError(f"{where} is {type(container).__name__}: it has no keys")


def argument_names(node: fdl.Buildable) -> list[str]:
    """Names of the arguments that a node's callable takes."""
    parameters = inspect.signature(fdl.get_callable(node)).parameters
    names = [n for n in parameters if n not in ("self",)]
    if isinstance(node, fdl.Partial):  # its positional arguments come at call time
        names = [n for n in names if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY]
    return names


def join(walked: str, element: Element) -> str:
    """The path of a child of `walked`, as `parse_path` reads it."""
    if isinstance(element, str):
        return f"{walked}.{element}" if walked else element
    if isinstance(element, slice):
        bounds = [element.start, element.stop, *([element.step] if element.step else [])]
        return f"{walked}[{':'.join('' if b is None else str(b) for b in bounds)}]"
    return f"{walked}[{element[0]!r}]" if isinstance(element, tuple) else f"{walked}[{element}]"


@dataclass(frozen=True)
class Node:
    """What stands for a node in a flat view: how it builds, and what."""

    kind: str
    function: Any

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return name if self.kind == "Config" else f"{self.kind}[{name}]"


@dataclass(frozen=True)
class Shared:
    """What stands for a node that was met before, at `path`."""

    path: str

    def __str__(self) -> str:
        return f"(the node {self.path or 'the root'})"


def leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of everything in a DAG: values, nodes, and nodes met again."""
    yield from _leaves(cfg, "", {})


def _leaves(value: Any, path: str, first: dict[int, str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, fdl.Buildable):
        if id(value) in first:
            yield path, Shared(first[id(value)])
            return
        first[id(value)] = path
        yield path, Node(type(value).__name__, fdl.get_callable(value))
        children = fdl.ordered_arguments(value, include_defaults=True).items()
    elif isinstance(value, dict) and value:
        children = [((key,), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(v, fdl.Buildable) for v in value):
        children = list(enumerate(value))
    else:
        yield path, value
        return
    for element, child in children:
        yield from _leaves(child, join(path, element), first)

"""Paths into a DAG: `model.layers[-1].attention.wq.out_dim`, `model.layers[::4]`."""

import dataclasses
import inspect
import re
from typing import Any

import fiddle as fdl

from nanigpt.errors import UnknownName, UsageError

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


def child(container: Any, element: Element, walked: str) -> Any:
    """The child of `container`, which lies at the path `walked`.

    Raises:
        UsageError: there is none to go on from; the message names what there is.
    """
    check_element(container, element, walked)
    if isinstance(element, str):
        path = join(walked, element)
        value = arguments(container).get(element, fdl.NO_VALUE)
        if value is fdl.NO_VALUE:
            raise UsageError(f"{path} is not set, so nothing lies below it")
        plain = isinstance(value, (list, tuple, dict, int, float, str, type(None)))
        if not plain and element not in fdl.ordered_arguments(container):
            raise UsageError(
                f"{path} is not set; its default, of {type(value).__name__}, belongs to the class, "
                f"so nothing below it can be set: set {path} itself"
            )
        return value
    if isinstance(element, tuple) and element[0] not in container:
        problem = f"{walked or 'the config'} has no key {element[0]!r}"
        raise UnknownName(problem, element[0], map(str, container))
    return container[element[0] if isinstance(element, tuple) else element]


def expand(container: Any, element: Element, walked: str) -> list[Element]:
    """The elements that a slice stands for; any other stands for itself."""
    if not isinstance(element, slice):
        return [element]
    if not isinstance(container, (list, tuple)):
        raise UsageError(
            f"{walked or 'the config'} is {_kind(container)}, not a list: it has no elements to "
            f"choose from"
        )
    chosen = list(range(len(container))[element])
    if not chosen:
        raise UsageError(f"{join(walked, element)} matches none of {len(container)} elements")
    return chosen


def check_element(container: Any, element: Element, walked: str) -> None:
    """Raises UsageError where `container` at `walked` has no such child to set."""
    where = walked or "the config"
    if isinstance(element, str):
        if not isinstance(container, fdl.Buildable):
            advice = "; choose an index: [0], [-1], [*]" if isinstance(container, list) else ""
            raise UsageError(f"{where} is {_kind(container)}: it has no {element!r}{advice}")
        known = argument_names(container)
        if element not in known:
            callable_name = fdl.get_callable(container).__name__
            problem = f"{where} ({callable_name}) has no {element!r}"
            raise UnknownName(problem, element, known)
    elif isinstance(element, int):
        if not isinstance(container, (list, tuple)):
            raise UsageError(f"{where} is {_kind(container)}: it has no index [{element}]")
        if not -len(container) <= element < len(container):
            raise UsageError(
                f"{where} has {len(container)} elements: expected an index from "
                f"{-len(container)} to {len(container) - 1}, not {element}"
            )
    elif not isinstance(container, dict):
        raise UsageError(f"{where} is {_kind(container)}: it has no key {element[0]!r}")


def _kind(value: Any) -> str:
    if isinstance(value, fdl.Buildable):
        return f"a config of {fdl.get_callable(value).__name__}"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)


def argument_names(node: fdl.Buildable) -> list[str]:
    """Names of the arguments that a node's callable takes."""
    parameters = inspect.signature(fdl.get_callable(node)).parameters
    names = [n for n in parameters if n not in ("self",)]
    if isinstance(node, fdl.Partial):  # its positional arguments come at call time
        names = [n for n in names if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY]
    return names


def arguments(node: fdl.Buildable) -> dict[str | int, Any]:
    """What a node's callable will be given: values that were set, and defaults."""
    values = fdl.ordered_arguments(node, include_defaults=True)
    function = fdl.get_callable(node)
    if dataclasses.is_dataclass(function):
        made = {f.name: f.default_factory for f in dataclasses.fields(function)}
        given = fdl.ordered_arguments(node)
        for name in values:
            if name not in given and made[name] is not dataclasses.MISSING:
                values[name] = made[name]()  # Fiddle has a placeholder for it
    return values


def join(walked: str, element: Element) -> str:
    """The path of a child of `walked`, as `parse_path` reads it."""
    if isinstance(element, str):
        return f"{walked}.{element}" if walked else element
    if isinstance(element, slice):
        bounds = [element.start, element.stop, *([element.step] if element.step else [])]
        return f"{walked}[{':'.join('' if b is None else str(b) for b in bounds)}]"
    return f"{walked}[{element[0]!r}]" if isinstance(element, tuple) else f"{walked}[{element}]"

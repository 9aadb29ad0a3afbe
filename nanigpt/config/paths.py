"""Paths into a DAG: `model.layers[-1].attention.wq.out_dim`, `model.layers[::4]`."""

import dataclasses
import difflib
import enum
import inspect
import re
from typing import Any

import fiddle as fdl

from nanigpt.errors import UnknownName, UsageError

_PART = re.compile(
    r"\.?(?P<name>[^\W\d]\w*)"
    r"|\[(?P<index>-?\d+)\]"
    r"|\[(?P<slice>\*|(?:-?\d+)?:(?:-?\d+)?(?::(?:-?\d+)?)?)\]"
    r"|\[(?P<quote>['\"])(?P<key>.*?)(?P=quote)\]"
    r"|\[(?P<word>[^\[\]'\"*:]+)\]"
)


@dataclasses.dataclass(frozen=True)
class Word:
    """A dict's key as it was typed without quotes: `RED`, `Color.RED`, `(1, 2)`, `None`."""

    text: str


# An argument's name, a list's index or the number of a positional argument, several of a list's
# indices, a dict's key.
Element = str | int | slice | tuple[Any] | Word


def parse_path(text: str) -> list[Element]:
    """Split a path into arguments (str), indices (int, slice) and dict keys (1-tuples, Words).

    Raises:
        UsageError: The text is not a path, or names something private (`__fn_or_cls__`).
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
            if parts[2:] == [0]:
                raise UsageError(f"{text!r}: the step of [{bounds}] is 0; expected another number")
            elements.append(slice(*parts) if bounds else slice(None))
        else:
            elements.append(Word(match["word"].strip()) if match["word"] else (match["key"],))
        position = match.end()
    if not elements:
        raise UsageError("the path is empty; expected names and indices: a.b[0].c")
    return elements


def child(container: Any, element: Element, walked: str) -> Any:
    """Return a child of `container`, which lies at the path `walked`.

    Raises:
        UsageError: There is no such child. The message names the children.
    """
    check_element(container, element, walked)
    if isinstance(container, fdl.Buildable):
        path = join(walked, element)
        value = fdl.NO_VALUE
        if isinstance(element, (str, int)):
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
        raise UnknownName(problem, str(element[0]), map(str, container))
    return container[element[0] if isinstance(element, tuple) else element]


def expand(container: Any, element: Element, walked: str) -> list[Element]:
    """Return the indices of a slice, or the dict key of a word or number, or the element itself."""
    if isinstance(container, dict) and isinstance(element, (int, Word)):
        return [(_key(container, element, walked),)]
    if not isinstance(element, slice):
        return [element]
    if not isinstance(container, (list, tuple)):
        raise UsageError(
            f"{walked or 'the config'} is {_kind(container)}, not a list: it has no elements to "
            f"choose from"
        )
    chosen: list[Element] = list(range(len(container))[element])
    if not chosen:
        raise UsageError(f"{join(walked, element)} matches none of {len(container)} elements")
    return chosen


def _key(container: dict[Any, Any], element: int | Word, walked: str) -> Any:
    """Return the key of a dict that was typed without quotes."""
    wanted = str(element) if isinstance(element, int) else "".join(element.text.split())
    for key in container:
        forms = {"".join(key_text(key).split()), getattr(key, "name", key)}
        if wanted in forms:
            return key
    problem = f"{walked or 'the config'} has no key {wanted}"
    if all(isinstance(key, str) for key in container):
        problem += f"; a new one is written [{wanted!r}]"
    raise UnknownName(problem, wanted, map(key_text, container))


def check_element(container: Any, element: Element, walked: str) -> None:
    """Raise UsageError if `container` at `walked` has no such child to set."""
    where = walked or "the config"
    if isinstance(element, str):
        if not isinstance(container, fdl.Buildable):
            advice = "; choose an index: [0], [-1], [*]" if isinstance(container, list) else ""
            raise UsageError(f"{where} is {_kind(container)}: it has no {element!r}{advice}")
        _check_argument(container, element, where)
    elif isinstance(element, int):
        if isinstance(container, fdl.Buildable):
            if element not in arguments(container):
                raise UsageError(f"{where} is {_kind(container)}: it has no index [{element}]")
        elif not isinstance(container, (list, tuple)):
            raise UsageError(f"{where} is {_kind(container)}: it has no index [{element}]")
        elif not -len(container) <= element < len(container):
            raise UsageError(
                f"{where} has {len(container)} elements: expected an index from "
                f"{-len(container)} to {len(container) - 1}, not {element}"
            )
    elif not isinstance(container, dict):
        key = element.text if isinstance(element, Word) else element
        key = key[0] if isinstance(key, tuple) else key
        advice = "; choose an index: [0], [-1], [*]" if isinstance(container, list) else ""
        raise UsageError(f"{where} is {_kind(container)}: it has no key {key!r}{advice}")


def _check_argument(node: fdl.Buildable, name: str, where: str) -> None:
    known = argument_names(node)
    if name in known:
        return
    signature = node.__signature_info__
    problem = f"{where} ({fdl.get_callable(node).__name__}) has no {name!r}"
    error = UnknownName(problem, name, known)
    looks_wrong = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    parameter = signature.parameters.get(name)
    if parameter is None:
        # A function that takes any keyword is believed, unless the name looks like a typing error.
        if not signature.has_var_keyword or looks_wrong:
            raise error
    elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
        raise UsageError(f"{problem}: **{name} are further arguments; set one by its own name")
    elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        raise UsageError(f"{problem}: *{name} are positional; set one by its number: [0]")
    elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise UsageError(f"{problem}: it is positional; set it by its number: [0]")
    elif not isinstance(node, fdl.Partial):
        raise error


def _kind(value: Any) -> str:
    if isinstance(value, fdl.Buildable):
        return f"a config of {fdl.get_callable(value).__name__}"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)


def argument_names(node: fdl.Buildable) -> list[str]:
    """Names of the arguments that a node's callable takes, and of those set among its `**kwargs`.

    Of a Partial, whose first arguments come when it is called, those are left out that nobody set
    and that have no default.
    """
    given = fdl.ordered_arguments(node)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [
        name
        for name, parameter in node.__signature_info__.parameters.items()
        if parameter.kind in named
        and not (
            isinstance(node, fdl.Partial)
            and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is inspect.Parameter.empty
            and name not in given
        )
    ]
    return [*names, *(n for n in given if isinstance(n, str) and n not in names)]


def arguments(node: fdl.Buildable) -> dict[str | int, Any]:
    """Return the arguments of a node's callable: values that were set, and defaults."""
    values = fdl.ordered_arguments(node, include_defaults=True)
    function = fdl.get_callable(node)
    if dataclasses.is_dataclass(function):
        made = {f.name: f.default_factory for f in dataclasses.fields(function)}
        given = fdl.ordered_arguments(node)
        for name in values:
            factory = made.get(name, dataclasses.MISSING)
            if name not in given and factory is not dataclasses.MISSING:
                values[name] = factory()  # Fiddle has a placeholder for it
    return values


def join(walked: str, element: Element) -> str:
    """Return the path of a child of `walked`, in the form that `parse_path` reads."""
    if isinstance(element, str):
        return f"{walked}.{element}" if walked else element
    if isinstance(element, slice):
        bounds = [element.start, element.stop, *([element.step] if element.step else [])]
        return f"{walked}[{':'.join('' if b is None else str(b) for b in bounds)}]"
    return (
        f"{walked}[{key_text(element[0])}]"
        if isinstance(element, tuple)
        else (f"{walked}[{element}]")
    )


def key_text(key: Any) -> str:
    """Return a dict's key as it is written in a path."""
    return f"{type(key).__name__}.{key.name}" if isinstance(key, enum.Enum) else repr(key)


def first_index(path: tuple[Element, ...]) -> int | None:
    """Where the first index of a list, or the number of a positional argument, stands."""
    return next((i for i, element in enumerate(path) if isinstance(element, int)), None)

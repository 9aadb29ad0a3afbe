"""`set:PATH=VALUE`: one argument of a DAG, typed by its annotation."""

import ast
import collections.abc
import types
import typing
from typing import Any

import fiddle as fdl

from nanigpt.config.paths import Element, check_element, follow, join, parse_path
from nanigpt.errors import UsageError

_DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


def apply_override(cfg: fdl.Buildable, assignment: str) -> None:
    """Sets one argument, list element or dict value of `cfg` in place.

    Raises:
        UsageError: the path leads nowhere, or the value is not of the argument's type.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r}: expected PATH=VALUE")
    *parents, last = parse_path(path.strip())
    node, walked, annotation = cfg, "", Any
    for element in parents:
        annotation = _child_annotation(node, element, annotation)
        node, walked = follow(node, element, walked), join(walked, element)
    check_element(node, last, walked)
    annotation = _child_annotation(node, last, annotation)
    try:
        value = parse_value(text, annotation)
    except ValueError as error:
        raise UsageError(f"{path}={text}: {error}") from error
    if isinstance(last, str):
        setattr(node, last, value)
    elif isinstance(node, tuple):
        raise UsageError(f"{walked} is a tuple; set it whole: set:{walked}={node!r}")
    else:
        node[last[0] if isinstance(last, tuple) else last] = value


def parse_value(text: str, annotation: Any) -> Any:
    """Reads `text` as a value of the annotated type.

    Text needs no quotes; `none`, `true` and `bf16` are known; `1e3` is an int where one is due.

    Raises:
        ValueError: it is not of that type.
    """
    allowed = _allowed_types(annotation)
    if types.NoneType in allowed and text.lower() == "none":
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if any(getattr(t, "__name__", "") == "dtype" for t in allowed):
        if text.removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"expected one of {', '.join(_DTYPES)}")
        import torch

        return getattr(torch, _DTYPES[text.removeprefix("torch.")])
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if Any in allowed or type(value) in allowed:
        return value
    if type(value) in [typing.get_origin(t) for t in allowed]:
        return value  # a list, tuple or dict; the component checks its elements
    if value in [choice for t in allowed for choice in _choices(t)]:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    if int in allowed and type(value) is float and value.is_integer():
        return int(value)
    if str in allowed:
        return text
    names = " or ".join(_name(t) for t in allowed)
    advice = ""
    if any(_is_component(t) for t in allowed):
        advice = "; set its arguments one by one, or exchange it with a fiddler"
    raise ValueError(f"expected {names}, not {type(value).__name__}{advice}")


def _child_annotation(parent: Any, element: Element, annotation: Any) -> Any:
    """The annotation of a child, where `annotation` is its parent's."""
    if isinstance(element, str):
        function = fdl.get_callable(parent)
        target = function.__init__ if isinstance(function, type) else function
        return typing.get_type_hints(target).get(element, Any)
    kind = dict if isinstance(element, tuple) else list
    for part in _allowed_types(annotation):
        if typing.get_origin(part) is kind:
            return typing.get_args(part)[-1]
    return Any


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _is_component(annotation: Any) -> bool:
    plain = (int, float, str, bool, types.NoneType)
    origin = typing.get_origin(annotation)
    return annotation not in plain and origin not in (list, tuple, dict, typing.Literal)


def _name(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "None"
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if typing.get_origin(annotation) is collections.abc.Callable:
        return "a callable"
    return getattr(annotation, "__name__", str(annotation))


def _allowed_types(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [t for part in typing.get_args(annotation) for t in _allowed_types(part)]
    return [annotation]

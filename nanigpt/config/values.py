"""Values of the command line, typed by the annotation of the argument that takes them."""

import ast
import collections.abc
import operator
import types
import typing
from typing import Any

import fiddle as fdl

from nanigpt.config.call import Call
from nanigpt.config.registry import find_component

_DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def parse_value(text: str, annotation: Any) -> Any:
    """Reads `text` as a value of the annotated type.

    Text needs no quotes; `none`, `true` and `bf16` are known; `1e3` is an int where one is due;
    numbers may be computed (`2**20`); `@name(args)` is a registered component.

    Raises:
        ValueError: it is not of that type.
    """
    allowed = types_of(annotation)
    if text.startswith("@"):
        return _component(text, allowed)
    if types.NoneType in allowed and text.lower() == "none":
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if any(getattr(t, "__name__", "") == "dtype" for t in allowed):
        if text.removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"expected one of {', '.join(_DTYPES)}")
        import torch

        return getattr(torch, _DTYPES[text.removeprefix("torch.")])
    value = _literal(text)
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
    advice = ""
    if any(_is_component(t) for t in allowed):
        advice = "; set its arguments one by one, or exchange it by @NAME or a fiddler"
    raise ValueError(f"expected {describe(allowed)}, not {type(value).__name__}{advice}")


def argument_annotation(node: fdl.Buildable, name: str) -> Any:
    """The annotation of a node's argument, without its tags; Any where there is none."""
    function = fdl.get_callable(node)
    target = function.__init__ if isinstance(function, type) else function
    return typing.get_type_hints(target).get(name, Any)


def element_annotation(annotation: Any, container: type) -> Any:
    """The annotation of the elements of a list, or of the values of a dict."""
    for part in types_of(annotation):
        if typing.get_origin(part) is container:
            return typing.get_args(part)[-1]
    return Any


def types_of(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [t for part in typing.get_args(annotation) for t in types_of(part)]
    return [annotation]


def describe(allowed: list[Any]) -> str:
    """The types as a person would name them: `int or None`."""
    return " or ".join(_name(t) for t in allowed)


def _literal(text: str) -> Any:
    """A Python literal or arithmetic on numbers; the text itself where it is neither."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass  # perhaps arithmetic, perhaps a bare string: seen below
    try:
        return _arithmetic(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError):
        return text


def _arithmetic(node: ast.expr) -> int | float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _arithmetic(node.left), _arithmetic(node.right)
        if isinstance(node.op, ast.Pow) and (abs(left) > 2**32 or abs(right) > 64):
            raise ValueError(f"{left}**{right} is too large")
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ArithmeticError as error:
            raise ValueError(str(error)) from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise ValueError("not arithmetic on numbers")


def _component(text: str, allowed: list[Any]) -> fdl.Buildable:
    call = Call.parse(text[1:])
    node = call.apply(find_component(call.name))
    made = fdl.get_callable(node)
    callables = any(typing.get_origin(t) is collections.abc.Callable for t in allowed)
    if Any in allowed or (isinstance(node, fdl.Partial) and callables):
        return node
    classes = tuple(t for t in allowed if isinstance(t, type))
    if isinstance(node, fdl.Partial) or not (isinstance(made, type) and issubclass(made, classes)):
        raise ValueError(f"expected {describe(allowed)}, not {made.__name__}")
    return node


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

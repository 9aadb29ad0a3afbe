"""Values of the command line, typed by the annotation of the argument that takes them."""

import ast
import collections.abc
import enum
import operator
import types
import typing
from typing import Any

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

_NOTHING = object()


def parse_value(text: str, annotation: Any) -> Any:
    """Reads `text` as a value of the annotated type.

    Text needs no quotes, also inside of containers; `none`, `true`, `bf16` and an enum's names are
    known; `1e3` is an int where one is due; numbers may be computed (`2**20`).

    Raises:
        ValueError: it is not of that type; the message says what was expected.
    """
    try:
        return _read(ast.parse(text.strip(), mode="eval").body, text.strip(), annotation)
    except SyntaxError:  # a bare string, such as a path
        return _read(None, text, annotation)


def argument_annotation(function: Any, name: str) -> Any:
    """The annotation of a callable's argument, without its tags; Any where there is none."""
    target = function.__init__ if isinstance(function, type) else function
    return typing.get_type_hints(target).get(name, Any)


def element_annotation(annotation: Any, container: type, index: Any = -1) -> Any:
    """The annotation of an element of a list or tuple, or of a dict's values."""
    for part in types_of(annotation):
        if typing.get_origin(part) is container:
            inner = typing.get_args(part)
            if container is tuple and Ellipsis not in inner:
                return inner[index]
            return inner[0] if container is tuple else inner[-1]
    return Any


def types_of(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [t for part in typing.get_args(annotation) for t in types_of(part)]
    return [annotation]


def describe(allowed: list[Any]) -> str:
    """The types as a person would name them: `int or None`."""
    return " or ".join(_name(t) for t in allowed)


def _read(node: ast.expr | None, text: str, annotation: Any) -> Any:
    """The value of an expression; `text` is its source, which may be no expression at all."""
    allowed = types_of(annotation)
    word = _word(text, allowed)
    if word is not _NOTHING:
        return word
    if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
        kind = _container(type(node), allowed)
        if kind is not None:
            return _elements(node, text, kind)
    value = _literal(node, text)
    if Any in allowed or type(value) in allowed:
        return value
    if value in [choice for t in allowed for choice in _choices(t)]:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    if int in allowed and type(value) is float and value.is_integer():
        return int(value)
    if str in allowed:
        return text
    chosen = any(_choices(t) or _is_enum(t) or _is_dtype(t) for t in allowed)
    given = repr(value) if chosen or value is None else type(value).__name__
    raise ValueError(f"expected {describe(allowed)}, not {given}{_advice(allowed)}")


def _word(text: str, allowed: list[Any]) -> Any:
    """What a bare word means where the types know it."""
    if types.NoneType in allowed and text.lower() == "none":
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in allowed:
        if _is_dtype(kind) and text.removeprefix("torch.") in _DTYPES:
            import torch

            return getattr(torch, _DTYPES[text.removeprefix("torch.")])
        if _is_enum(kind):
            members = {m.name.lower(): m for m in kind} | {str(m.value).lower(): m for m in kind}
            if text.removeprefix(f"{kind.__name__}.").lower() in members:
                return members[text.removeprefix(f"{kind.__name__}.").lower()]
    return _NOTHING


def _container(written: type[ast.expr], allowed: list[Any]) -> Any:
    """The allowed type that a list, tuple or dict is read as; a list may be written for a tuple."""
    order = {ast.List: (list, tuple), ast.Tuple: (tuple, list), ast.Dict: (dict,)}[written]
    for kind in order:
        for annotation in allowed:
            if (typing.get_origin(annotation) or annotation) is kind:
                return annotation
    return None


def _elements(node: ast.List | ast.Tuple | ast.Dict, text: str, annotation: Any) -> Any:
    kind = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if isinstance(node, ast.Dict):
        of_key, of_value = inner or (Any, Any)
        keys = [_element(k, text, of_key, "a key") for k in node.keys]
        return {
            key: _element(v, text, of_value, f"[{key!r}]")
            for key, v in zip(keys, node.values, strict=True)
        }
    if kind is tuple and inner and Ellipsis not in inner and len(inner) != len(node.elts):
        raise ValueError(f"expected {len(inner)} elements, not {len(node.elts)}")
    return kind(
        _element(e, text, element_annotation(annotation, kind, i), f"[{i}]")
        for i, e in enumerate(node.elts)
    )


def _element(node: ast.expr | None, text: str, annotation: Any, where: str) -> Any:
    source = (ast.get_source_segment(text, node) or "") if node else ""
    try:
        return _read(node, source, annotation)
    except ValueError as error:
        raise ValueError(f"{where}={source}: {error}") from error


def _literal(node: ast.expr | None, text: str) -> Any:
    """A Python literal or arithmetic on numbers; the text itself where it is neither."""
    if node is None:
        return text
    for read in (ast.literal_eval, _arithmetic):
        try:
            return read(node)
        except ValueError:  # not of this kind
            continue
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


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _is_dtype(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "dtype"


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _advice(allowed: list[Any]) -> str:
    """What else to say of types whose name does not tell how to write their values."""
    if bool in allowed:
        return " (write true or false)"
    if any(map(_is_dtype, allowed)):
        return f" (one of {', '.join(_DTYPES)})"
    plain = (int, float, str, bool, types.NoneType)
    for kind in allowed:
        origin = typing.get_origin(kind)
        known = kind in plain or origin in (list, tuple, dict, typing.Literal)
        if not (known or _is_enum(kind)):
            return "; set its arguments one by one, or exchange it: @NAME(args)"
    return ""


def _name(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "None"
    if _is_enum(annotation):
        return f"one of {', '.join(member.name for member in annotation)}"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    if origin is collections.abc.Callable:
        return "a callable"
    if origin in (list, tuple, dict):
        inner = ", ".join(
            "..." if t is Ellipsis else describe(types_of(t)) for t in typing.get_args(annotation)
        )
        return f"{origin.__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))

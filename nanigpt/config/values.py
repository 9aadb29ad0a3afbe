"""Values of the command line, typed by the annotation of the argument that takes them."""

import ast
import collections.abc
import contextlib
import enum
import inspect
import math
import operator
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.protocols import (
    class_lacks,
    is_callable,
    is_protocol,
    object_lacks,
    partial_lacks,
    same_types,
)
from nanigpt.config.registry import components

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

_NO_NUMBERS = ("nan", "-nan", "+nan", "inf", "-inf", "+inf")

_LARGEST = int(sys.float_info.max)

_NOTHING = object()


class _Refused(ValueError):
    """A number that is not computed: too large, or divided by zero."""


def parse_value(text: str, annotation: Any) -> Any:
    """Parse `text` as a value of the annotated type.

    Text needs no quotes, also inside of containers. `none`, `true`, `bf16` and an enum's names are
    known. `1e3` is an int if the type asks for one. Numbers may be computed (`2**20`). A number
    that is too large for its type is refused; write infinity as `inf`.

    Raises:
        ValueError: it is not of that type; the message says what was expected.
    """
    try:
        value = _read(ast.parse(text.strip(), mode="eval").body, text.strip(), annotation)
        return text if value == text.strip() else value  # blanks belong to a bare string
    except (SyntaxError, RecursionError, MemoryError):  # a bare string, such as a path
        return _read(None, text, annotation)


def convert(value: Any, annotation: Any) -> Any:
    """Convert a Python value to the annotated type, if that loses nothing.

    Examples are 1 for 1.0, 1e3 for an int, and a list for a tuple. Values that are not plain, such
    as a config or a function, stay as they are and are checked later.

    Raises:
        ValueError: it is not of that type; the message says what was expected.
    """
    allowed = types_of(annotation)
    if type(value) in (list, tuple, dict):
        kind, part = _container(type(value), allowed)
        if kind is None:
            if takes_anything(allowed) or _has_protocol(value, allowed):
                return value
            raise _unexpected(value, allowed)
        _check_length(part, len(value))
        items = value.items() if kind is dict else enumerate(value)
        made = []
        for key, child in items:
            try:
                made.append((key, convert(child, element_annotation(part, kind, key))))
            except ValueError as error:
                raise ValueError(f"[{key!r}]={child!r}: {error}") from error
        return dict(made) if kind is dict else kind(child for _, child in made)
    if type(value) not in (type(None), bool, int, float, str):
        return value
    fitting = _fitting(value, allowed)
    if fitting is _NOTHING:
        raise _unexpected(value, allowed)
    return fitting


def argument_annotation(function: Any, name: str | int) -> Any:
    """Return the annotation of a callable's argument, without its tags.

    Return Any if there is none, or if it cannot be resolved.

    Args:
        function: The callable.
        name: Name of a parameter or of one of `**kwargs`, or the number of a positional argument.
    """
    target = (
        inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
    )
    name = _parameter(function, name)
    try:
        return typing.get_type_hints(target).get(name, Any)
    except Exception:  # evaluating an annotation may raise anything; this one may be another's
        own = types.SimpleNamespace(__annotations__={name: target.__annotations__.get(name, Any)})
    try:
        return typing.get_type_hints(own, getattr(target, "__globals__", None))[name]
    except Exception:  # a check of the config tells it
        return Any


def element_annotation(annotation: Any, container: type, index: Any = -1) -> Any:
    """Return the annotation of an element of a list or tuple, or of a dict's values."""
    for part in types_of(annotation):
        inner = typing.get_args(part)
        if inner and _takes(part, container):
            if typing.get_origin(part) is tuple and Ellipsis not in inner:
                return inner[index] if -len(inner) <= index < len(inner) else Any
            return inner[-1] if container is dict else inner[0]
    return Any


def types_of(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [t for part in typing.get_args(annotation) for t in types_of(part)]
    return [annotation]


def takes_anything(allowed: list[Any]) -> bool:
    """Whether no value is of a wrong type, or none can be known to be."""
    return any(t is Any or t is object or isinstance(t, typing.TypeVar) for t in allowed)


def _has_protocol(value: Any, allowed: list[Any]) -> bool:
    """Return whether a value has all that one of the allowed protocols asks for."""
    return any(is_protocol(t) and object_lacks(value, t) is None for t in allowed)


def takes_node(allowed: list[Any], kind: type[fdl.Buildable], made: Any) -> bool:
    """Return whether a node of `made` may be an argument of one of the types.

    The result of a function is compared when it is built.
    """
    if takes_anything(allowed):
        return True
    structural = [t for t in allowed if is_protocol(t) or is_callable(t)]
    if issubclass(kind, fdl.Partial):
        return any(partial_lacks(made, t) is None for t in structural)
    if not isinstance(made, type):
        return bool(structural)
    if any(class_lacks(made, t) is None for t in structural):
        return True
    classes = [typing.get_origin(t) or t for t in allowed if t not in structural]
    return any(isinstance(c, type) and issubclass(made, c) for c in classes)


def is_for(allowed: list[Any], kind: type[fdl.Buildable], made: Any) -> bool:
    """Return whether types that are narrower than any module or any callable take a component."""
    for t in allowed:
        if takes_anything([t]) or _is_of_torch(t):
            continue
        if is_callable(t) and not issubclass(kind, fdl.Partial):
            continue
        if takes_node([t], kind, made) and (not is_protocol(t) or same_types(made, t)):
            return True
    return False


def describe(allowed: list[Any]) -> str:
    """Return the types as a person would name them, such as `int or None`."""
    return " or ".join(_name(t) for t in allowed)


def _read(node: ast.expr | None, text: str, annotation: Any) -> Any:
    """Return the value of an expression; `text` is its source, which need not be an expression."""
    allowed = types_of(annotation)
    word = _word(text, allowed)
    if word is not _NOTHING:
        return word
    if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
        written = {ast.List: list, ast.Tuple: tuple, ast.Dict: dict}[type(node)]
        kind, part = _container(written, allowed)
        if kind is not None:
            return _elements(node, text, kind, part)
    try:
        value = _literal(node, text)
    except _Refused as error:
        if str in allowed or _has_protocol(text, allowed):
            return text
        infinite = "; infinity is written inf" if float in allowed else ""
        raise ValueError(f"expected {describe(allowed)}, but {error}{infinite}") from error
    fitting = _fitting(value, allowed)
    if fitting is not _NOTHING:
        return fitting
    if str in allowed:
        return text
    raise _unexpected(text if text.lower() in _NO_NUMBERS else value, allowed)


def _fitting(value: Any, allowed: list[Any]) -> Any:
    """Return a value as one of the types, if it has that type or loses nothing by conversion."""
    if takes_anything(allowed) or type(value) in allowed or _has_protocol(value, allowed):
        return value
    if value in [choice for t in allowed for choice in _choices(t)]:
        return value
    if float in allowed and type(value) is int:
        if abs(value) > _LARGEST:
            raise ValueError(f"expected {describe(allowed)}, but the number is too large")
        return float(value)
    if int in allowed and type(value) is float and value.is_integer():
        return int(value)
    return _NOTHING


def _unexpected(value: Any, allowed: list[Any]) -> ValueError:
    chosen = any(_choices(t) or _is_enum(t) or _is_dtype(t) for t in allowed)
    plain = value is None or str(value).lower() in _NO_NUMBERS
    given = repr(value) if chosen else str(value) if plain else type(value).__name__
    return ValueError(f"expected {describe(allowed)}, not {given}{_advice(allowed)}")


def _word(text: str, allowed: list[Any]) -> Any:
    """Return the meaning of a bare word, if one of the types knows it."""
    if types.NoneType in allowed and text.lower() == "none":
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if float in allowed and str not in allowed and text.lower() in ("inf", "+inf", "-inf"):
        return float(text)
    for kind in allowed:
        if _is_dtype(kind) and text.removeprefix("torch.") in _DTYPES:
            import torch

            return getattr(torch, _DTYPES[text.removeprefix("torch.")])
        if _is_enum(kind):
            members = {m.name.lower(): m for m in kind} | {str(m.value).lower(): m for m in kind}
            if text.removeprefix(f"{kind.__name__}.").lower() in members:
                return members[text.removeprefix(f"{kind.__name__}.").lower()]
    return _NOTHING


def _parameter(function: Any, name: str | int) -> str:
    """Return the parameter that receives an argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin such as dict
        return str(name)
    if isinstance(name, int):
        ordered = [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
        if name < len(ordered):
            return ordered[name]
        return next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), str(name))
    if any(p.name == name and p.kind is not p.VAR_KEYWORD for p in parameters):
        return name
    return next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), name)


def _takes(annotation: Any, container: type) -> bool:
    """Whether a list, tuple or dict is of the annotated type: `list[int]`, `Sequence[int]`."""
    origin = typing.get_origin(annotation) or annotation
    known = isinstance(origin, type) and origin is not object and not is_protocol(origin)
    return known and issubclass(container, origin)


def _container(written: type, allowed: list[Any]) -> tuple[type | None, Any]:
    """Return the type of a list, tuple or dict after reading, and its annotation.

    A list may be written for a tuple.
    """
    kinds: dict[type, tuple[type, ...]] = {
        list: (list, tuple),
        tuple: (tuple, list),
        dict: (dict,),
    }
    for kind in kinds[written]:
        for annotation in allowed:
            if _takes(annotation, kind):
                return kind, annotation
    return None, None


def _elements(node: ast.List | ast.Tuple | ast.Dict, text: str, kind: type, annotation: Any) -> Any:
    inner = typing.get_args(annotation)
    if isinstance(node, ast.Dict):
        of_key, of_value = inner or (Any, Any)
        keys = [_element(k, text, of_key, "a key") for k in node.keys]
        return {
            key: _element(v, text, of_value, f"[{key!r}]")
            for key, v in zip(keys, node.values, strict=True)
        }
    _check_length(annotation, len(node.elts))
    return kind(
        _element(e, text, element_annotation(annotation, kind, i), f"[{i}]")
        for i, e in enumerate(node.elts)
    )


def _check_length(annotation: Any, n: int) -> None:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and Ellipsis not in inner and len(inner) != n:
        raise ValueError(f"expected {len(inner)} elements, not {n}")


def _element(node: ast.expr | None, text: str, annotation: Any, where: str) -> Any:
    source = (ast.get_source_segment(text, node) or "") if node else ""
    try:
        return _read(node, source, annotation)
    except ValueError as error:
        raise ValueError(f"{where}={source}: {error}") from error


def _literal(node: ast.expr | None, text: str) -> Any:
    """Return a Python literal or the result of arithmetic, or the text if it is neither."""
    if node is None:
        return text
    for read in (ast.literal_eval, _arithmetic):
        try:
            value = read(node)
        except _Refused:
            raise
        except (ValueError, TypeError, RecursionError):  # not of this kind
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise _Refused(f"{text} is too large")
        return value
    return text


def _arithmetic(node: ast.expr) -> int | float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _arithmetic(node.left), _arithmetic(node.right)
        if isinstance(node.op, ast.Pow) and (abs(left) > 2**32 or abs(right) > 64):
            raise _Refused(f"{left}**{right} is too large")
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ArithmeticError as error:
            raise _Refused(f"{left} and {right} give no number: {error}") from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    number = node.value if isinstance(node, ast.Constant) else None
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return number
    raise ValueError("not arithmetic on numbers")


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _is_dtype(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "dtype"


def _is_of_torch(annotation: Any) -> bool:
    return getattr(annotation, "__module__", "").partition(".")[0] == "torch"


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _advice(allowed: list[Any]) -> str:
    """Return advice for types whose names do not show how to write their values."""
    if bool in allowed:
        return " (write true or false)"
    if any(map(_is_dtype, allowed)):
        return f" (one of {', '.join(_DTYPES)})"
    plain = (int, float, str, bool, types.NoneType)
    if all(t in plain or _is_enum(t) or _choices(t) or _item_types(t) for t in allowed):
        return ""
    structural = any(map(is_protocol, allowed))
    fitting = [
        f"@{name}"
        for name, (kind, made) in made_by_components()
        # What a partial gives a protocol is compared by a check: here it is no advice.
        if is_for(allowed, kind, made) and not (structural and kind is fdl.Partial)
    ]
    if not fitting and any(map(_is_of_torch, allowed)):
        fitting = ["--config=help lists components"]  # any of dozens
    instead = f", or exchange it: {', '.join(fitting)}" if fitting else ""
    return f"; set its arguments one by one{instead}"


def _item_types(annotation: Any) -> bool:
    """Whether it is a list, tuple or dict."""
    return any(_takes(annotation, kind) for kind in (list, tuple, dict))


def made_by_components() -> Iterator[tuple[str, tuple[type[fdl.Buildable], Any]]]:
    """Yield names of components that a command line can exchange, how each builds, and what."""
    for name, function in components().items():
        returned = typing.get_type_hints(function).get("return")
        kind, made = typing.get_origin(returned) or returned, typing.get_args(returned)
        if not (isinstance(kind, type) and issubclass(kind, fdl.Buildable)):
            continue
        if made:
            yield name, (kind, made[0])
            continue
        with contextlib.suppress(TypeError):  # it has arguments without a default
            yield name, (kind, fdl.get_callable(function()))


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

"""Whether what stands in an argument is of the type that its annotation asks for."""

import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import typeguard

from nanigpt.config.check.findings import Finding
from nanigpt.config.flatten import holds_nodes
from nanigpt.config.fold import Path, Position
from nanigpt.config.protocols import class_lacks, is_callable, is_protocol, object_lacks
from nanigpt.config.values import describe, types_of

_ALL_ITEMS = typeguard.CollectionCheckStrategy.ALL_ITEMS
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@functools.cache
def hints(function: Any) -> dict[str, Any]:
    """Resolve the annotations of a callable's parameters; raises whatever one of them raises."""
    target: Any = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009
    return typing.get_type_hints(target)


def slots(node: fdl.Buildable) -> Iterator[tuple[str | int, Any]]:
    """Yield the arguments of a node that are set and annotated, with their annotations."""
    try:
        annotations = hints(fdl.get_callable(node))
    except Exception:  # the check of annotations reports it
        return
    for name in fdl.ordered_arguments(node):
        parameter = _parameter(node, name)
        if parameter in annotations:
            yield name, annotations[parameter]


def type_findings(node: fdl.Buildable, where: Path) -> Iterator[Finding]:
    """Find arguments of a node that are of a wrong type."""
    given = fdl.ordered_arguments(node)
    for name, annotation in slots(node):
        yield from _findings(given[name], annotation, (*where, element(name)))


def built_findings(
    node: fdl.Buildable, built: dict[str | int, Any], where: Path
) -> Iterator[Finding]:
    """Find arguments that do not fit once they are built.

    Only then are the results of functions known, and attributes that a constructor sets.
    """
    given = fdl.ordered_arguments(node)
    for name, annotation in slots(node):
        yield from _built(given[name], built[name], annotation, (*where, element(name)))


def element(argument: str | int) -> str | int:
    """Return the element of a path that stands for a node's argument."""
    return Position(argument) if isinstance(argument, int) else argument


def items(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the elements of a container with their elements of a path."""
    if isinstance(value, dict):
        return (((key,), child) for key, child in value.items())
    return iter(enumerate(value))


def _parameter(node: fdl.Buildable, argument: str | int) -> str | None:
    """Return the parameter of a node's callable that takes an argument.

    An argument may also be positional, or one of `*args` or `**kwargs`.
    """
    parameters = node.__signature_info__.parameters
    if isinstance(argument, str) and argument in parameters:
        return argument
    if isinstance(argument, int) and argument < len(parameters):
        name = list(parameters)[argument]
        if parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            return name
    kind = _VARIADIC[isinstance(argument, str)]
    return next((name for name, p in parameters.items() if p.kind is kind), None)


def _findings(value: Any, annotation: Any, path: Path) -> Iterator[Finding]:
    allowed = types_of(annotation)
    if isinstance(value, fdl.Buildable):
        if not any(_takes(t, value) for t in allowed):
            made = fdl.get_callable(value)
            yield _unfit(path, allowed, getattr(made, "__name__", repr(value)), made)
    elif holds_nodes(value) or (_is_container(value) and any(map(_asks_protocol, allowed))):
        # Elements are checked one by one, by the annotation of the container's elements.
        kinds = [t for t in allowed if is_kind(type(value), t)]
        if not kinds:
            yield _unfit(path, allowed, type(value).__name__)
            return
        for (key, child), annotated in zip(items(value), _elements(value, kinds[0]), strict=True):
            yield from _findings(child, annotated, (*path, key))
    elif protocols := [t for t in allowed if _is_structural(t)]:
        others = [t for t in allowed if t not in protocols]
        fits = any(object_lacks(value, t) is None for t in protocols)
        if not fits and not any(_type_error(value, t) is None for t in others):
            detail = f" ({object_lacks(value, protocols[0])})" if len(protocols) == 1 else ""
            yield Finding(path, f"={value!r}: expected {describe(allowed)}{detail}")
    elif (error := _type_error(value, annotation)) is not None:
        detail = "" if "union" in error else f" ({error})"
        yield Finding(path, f"={value!r}: expected {describe(allowed)}{detail}")


def _type_error(value: Any, annotation: Any) -> str | None:
    try:
        typeguard.check_type(value, annotation, collection_check_strategy=_ALL_ITEMS)
    except typeguard.TypeCheckError as error:
        return str(error)
    return None


def _unfit(path: Path, allowed: list[Any], name: str, made: Any = None) -> Finding:
    """Report a value that is of none of the allowed types; say why if one protocol is allowed."""
    structural = [t for t in allowed if _is_structural(t)]
    why = None
    if len(structural) == 1 and isinstance(made, type):
        why = class_lacks(made, structural[0])
    text = f": expected {describe(allowed)}, not {name}"
    return Finding(path, f"{text} ({why})" if why else text)


def _built(value: Any, built: Any, annotation: Any, path: Path) -> Iterator[Finding]:
    allowed = types_of(annotation)
    if isinstance(value, fdl.Buildable):
        structural = [t for t in allowed if _is_structural(t)]
        made = fdl.get_callable(value)
        returned = not isinstance(made, type) and not isinstance(value, fdl.Partial)
        others = [t for t in allowed if t not in structural]
        if any(object_lacks(built, t) is None for t in structural):
            return
        if any(is_kind(type(built), t) for t in others) or not (structural or returned):
            return
        if _is_plain(built) and any(_type_error(built, t) is None for t in others):
            return
        name = getattr(made, "__name__", repr(made))
        gave = f"{name}, which returned {type(built).__name__}" if returned else name
        why = object_lacks(built, structural[0]) if len(structural) == 1 else None
        text = f": expected {describe(allowed)}, not {gave}"
        yield Finding(path, f"{text} ({why})" if why else text)
    elif holds_nodes(value):
        kinds = [t for t in allowed if is_kind(type(value), t)]
        if not kinds:
            return
        pairs = zip(items(value), items(built), _elements(value, kinds[0]), strict=True)
        for (key, child), (_, child_built), annotated in pairs:
            yield from _built(child, child_built, annotated, (*path, key))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, list, tuple, dict, set, type(None)))


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict)) and bool(value)


def _elements(
    value: list[Any] | tuple[Any, ...] | dict[Any, Any], annotation: Any
) -> Iterator[Any]:
    """Yield the annotation of each element of a container."""
    arguments = typing.get_args(annotation)
    for i in range(len(value)):
        if not arguments:
            yield Any
        elif isinstance(value, tuple) and _is_fixed(annotation):
            yield arguments[i] if i < len(arguments) else Any
        else:
            yield arguments[0] if isinstance(value, tuple) else arguments[-1]


def _asks_protocol(annotation: Any) -> bool:
    """Return whether the annotation of a container has a protocol in it."""
    inner = [t for argument in typing.get_args(annotation) for t in types_of(argument)]
    return any(is_protocol(t) or _asks_protocol(t) for t in inner)


def _is_structural(annotation: Any) -> bool:
    return is_protocol(annotation) or is_callable(annotation)


def is_kind(kind: type, annotation: Any) -> bool:
    """Return whether objects of this class may be an argument with this annotation."""
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    target = typing.get_origin(annotation) or annotation
    if typing.is_typeddict(target):
        return kind is dict
    if isinstance(annotation, typing.TypeVar):
        bounds = annotation.__constraints__ or (annotation.__bound__ or object,)
        return any(is_kind(kind, t) for bound in bounds for t in types_of(bound))
    if annotation is Any:
        return True
    if _is_structural(annotation):
        return class_lacks(kind, annotation) is None
    return isinstance(target, type) and issubclass(kind, target)


def _is_fixed(annotation: Any) -> bool:
    """Return whether an annotation is a tuple with a type for each element."""
    return typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)


def _takes(annotation: Any, node: fdl.Buildable) -> bool:
    """Return whether the object of a node may be an argument with this annotation.

    The class decides; the result of a function is checked when it is built.
    """
    made = fdl.get_callable(node)
    if isinstance(node, fdl.Partial):
        return _is_structural(annotation) or is_kind(functools.partial, annotation)
    return not isinstance(made, type) or is_kind(made, annotation)

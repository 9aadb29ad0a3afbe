"""What is wrong with a config, all at once, before anything is built.

Each check walks the DAG and yields problems as `path: what is wrong`.
"""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import torch
import typeguard
from fiddle import daglish

from nanigpt.config.depth import TOO_DEEP
from nanigpt.config.fingerprint import nameless
from nanigpt.config.leaves import holds_nodes
from nanigpt.config.paths import join
from nanigpt.config.values import describe, types_of

_ALL_ITEMS = typeguard.CollectionCheckStrategy.ALL_ITEMS
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def problems(cfg: fdl.Buildable) -> list[str]:
    """Missing arguments, wrong types, nodes shared by accident, lost tags, and what has no name."""
    found = []
    try:
        for node, path in daglish.iterate(cfg):
            if isinstance(node, fdl.Buildable):
                where = daglish.path_str(path).removeprefix(".")
                for check in (_annotations, _missing, _types, _sharing):
                    found.extend(check(node, where))
        found.extend(nameless(cfg))
    except RecursionError:
        return [f"the config {TOO_DEEP}"]
    return list(dict.fromkeys(found))


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    target = function.__init__ if isinstance(function, type) else function
    return typing.get_type_hints(target)


def _annotations(node: fdl.Buildable, where: str) -> Iterator[str]:
    """Fiddle drops every tag of a signature, silently, when one annotation cannot be resolved."""
    function = fdl.get_callable(node)
    try:
        _hints(function)
    except Exception as error:  # whatever evaluating an annotation may raise
        yield (
            f"{where or 'the root'}: an annotation of {function.__name__} cannot be resolved "
            f"({error}), so its tags are lost; import the name outside of TYPE_CHECKING"
        )


def _missing(node: fdl.Buildable, where: str) -> Iterator[str]:
    if isinstance(node, fdl.Partial):  # it may be given the rest when it is called
        return
    given = fdl.ordered_arguments(node)
    # Not inspect.signature: builtins such as dict have none.
    for i, (name, parameter) in enumerate(node.__signature_info__.parameters.items()):
        known = name in given or (parameter.kind is parameter.POSITIONAL_ONLY and i in given)
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC and not known:
            yield f"{join(where, name)}: required by {fdl.get_callable(node).__name__}, not set"


def _types(node: fdl.Buildable, where: str) -> Iterator[str]:
    try:
        hints = _hints(fdl.get_callable(node))
    except Exception:  # told by _annotations
        return
    for name, value in fdl.ordered_arguments(node).items():
        parameter = _parameter(node, name)
        if parameter in hints:
            yield from _type_problems(value, hints[parameter], join(where, name))


def _parameter(node: fdl.Buildable, argument: str | int) -> str | None:
    """The parameter of a node's callable that takes an argument, also by position or as one of
    `*args` or `**kwargs`."""
    parameters = node.__signature_info__.parameters
    if argument in parameters:
        return argument
    if isinstance(argument, int) and argument < len(parameters):
        name = list(parameters)[argument]
        if parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            return name
    kind = _VARIADIC[isinstance(argument, str)]
    return next((name for name, p in parameters.items() if p.kind is kind), None)


def _type_problems(value: Any, annotation: Any, path: str) -> Iterator[str]:
    allowed = types_of(annotation)
    if isinstance(value, fdl.Buildable):
        if not any(_accepts(t, value) for t in allowed):
            name = getattr(fdl.get_callable(value), "__name__", repr(value))
            yield f"{path}: expected {describe(allowed)}, not {name}"
    elif holds_nodes(value):
        # Nodes are checked one by one, by the annotation of the container's elements.
        kinds = [t for t in allowed if _is_kind(type(value), t)]
        if not kinds:
            yield f"{path}: expected {describe(allowed)}, not {type(value).__name__}"
        arguments = typing.get_args(kinds[0]) if kinds else ()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for i, (key, child) in enumerate(items):
            if not arguments:
                element = Any
            elif isinstance(value, tuple) and _is_fixed(kinds[0]):
                element = arguments[i] if i < len(arguments) else Any
            else:
                element = arguments[0] if isinstance(value, tuple) else arguments[-1]
            child_path = join(path, (key,) if isinstance(value, dict) else key)
            yield from _type_problems(child, element, child_path)
    else:
        try:
            typeguard.check_type(value, annotation, collection_check_strategy=_ALL_ITEMS)
        except typeguard.TypeCheckError as error:
            detail = "" if "union" in str(error) else f" ({error})"
            yield f"{path}={value!r}: expected {describe(allowed)}{detail}"


def _is_kind(kind: type, annotation: Any) -> bool:
    """Whether an object of this class may stand where `annotation` is asked for."""
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    target = typing.get_origin(annotation) or annotation
    if typing.is_typeddict(target):
        return kind is dict
    if isinstance(annotation, typing.TypeVar):
        bounds = annotation.__constraints__ or (annotation.__bound__ or object,)
        return any(_is_kind(kind, t) for bound in bounds for t in types_of(bound))
    if annotation is Any or getattr(annotation, "_is_protocol", False):
        return True
    return isinstance(target, type) and issubclass(kind, target)


def _is_fixed(annotation: Any) -> bool:
    """Whether it is a tuple with a type for each element."""
    return typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)


def _accepts(annotation: Any, node: fdl.Buildable) -> bool:
    """Whether what the node builds may stand where `annotation` is asked for."""
    made = fdl.get_callable(node)
    if isinstance(node, fdl.Partial):
        return _is_kind(functools.partial, annotation)
    if (typing.get_origin(annotation) or annotation) is collections.abc.Callable:
        return True  # nearly anything may be: a class, or an object that can be called
    # What a function returns is seen when it is built.
    return not isinstance(made, type) or _is_kind(made, annotation)


def _sharing(node: fdl.Buildable, where: str) -> Iterator[str]:
    """A Partial builds a Config below it once and gives the same object to every call."""
    if isinstance(node, fdl.Config):
        return
    for path, module in _modules_below(node, where, set()):
        yield (
            f"{path}: {fdl.get_callable(module).__name__} below {type(node).__name__} would be "
            "one module shared by every call; use fdl.ArgFactory, or leave it to the caller"
        )


def _modules_below(value: Any, path: str, met: set[int]) -> Iterator[tuple[str, fdl.Config]]:
    """The outermost configs of modules below a node, and their paths; what is below another Partial
    is told there."""
    if isinstance(value, fdl.Buildable):
        children = list(fdl.ordered_arguments(value).items())
    elif isinstance(value, dict):
        children = [((key,), child) for key, child in value.items()]
    else:
        children = list(enumerate(value)) if isinstance(value, (list, tuple)) else []
    for element, child in children:
        if id(child) in met:
            continue
        met.add(id(child))
        made = fdl.get_callable(child) if isinstance(child, fdl.Config) else None
        if isinstance(made, type) and issubclass(made, torch.nn.Module):
            yield join(path, element), child
        elif made is not None or not isinstance(child, fdl.Buildable):
            yield from _modules_below(child, join(path, element), met)


def collect_build(cfg: fdl.Buildable) -> tuple[Any, list[str]]:
    """Builds what can be built; returns the root, and what each failing constructor said.

    A node whose argument failed is left out, so that a mistake is told once.
    """
    said: list[str] = []

    def build(value: Any, state: daglish.State) -> Any:
        if not isinstance(value, fdl.Buildable):
            return state.map_children(value)
        children = state.flattened_map_children(value)
        arguments = children.metadata.arguments(children.values)
        if _failed(list(arguments.values())):
            return _FAILED
        try:
            return call(value, arguments)
        except Exception as error:  # a constructor may raise anything; all are told by path
            kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
            where = daglish.path_str(state.current_path).removeprefix(".")
            said.append(f"{where or 'the root'}: {kind}{error}")
            return _FAILED

    try:
        return daglish.MemoizedTraversal.run(build, cfg), said
    except RecursionError:
        return None, [f"the config {TOO_DEEP}"]


def call(node: fdl.Buildable, arguments: dict[str | int, Any]) -> Any:
    """What a node builds from its built arguments, some of which may be positional."""
    args, kwargs = node.__signature_info__.transform_to_args_kwargs(arguments)
    return node.__build__(*args, **kwargs)


_FAILED = types.SimpleNamespace()


def _failed(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_failed, value))
    return value is _FAILED

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

from nanigpt.config.fingerprint import nameless
from nanigpt.config.leaves import holds_nodes
from nanigpt.config.paths import join
from nanigpt.config.values import describe, types_of

_ALL_ITEMS = typeguard.CollectionCheckStrategy.ALL_ITEMS


def problems(cfg: fdl.Buildable) -> list[str]:
    """Missing arguments, wrong types, nodes shared by accident, lost tags, and what has no name."""
    found = []
    for node, path in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            where = daglish.path_str(path).removeprefix(".")
            for check in (_annotations, _missing, _types, _sharing):
                found.extend(check(node, where))
    found.extend(nameless(cfg))
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
    if not isinstance(node, fdl.Config):  # a Partial may be given the rest when it is called
        return
    given = fdl.ordered_arguments(node)
    for name, parameter in inspect.signature(fdl.get_callable(node)).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and name not in given and not variadic:
            yield f"{join(where, name)}: required by {fdl.get_callable(node).__name__}, not set"


def _types(node: fdl.Buildable, where: str) -> Iterator[str]:
    try:
        hints = _hints(fdl.get_callable(node))
    except Exception:  # told by _annotations
        return
    for name, value in fdl.ordered_arguments(node).items():
        if name in hints:
            yield from _type_problems(value, hints[name], join(where, str(name)))


def _type_problems(value: Any, annotation: Any, path: str) -> Iterator[str]:
    allowed = types_of(annotation)
    if isinstance(value, fdl.Buildable):
        if not any(_accepts(t, value) for t in allowed):
            name = getattr(fdl.get_callable(value), "__name__", repr(value))
            yield f"{path}: expected {describe(allowed)}, not {name}"
    elif holds_nodes(value):
        # Nodes are checked one by one, by the annotation of the container's elements.
        kinds = [t for t in allowed if typing.get_origin(t) is type(value) or t is type(value)]
        if not kinds and Any not in allowed:
            yield f"{path}: expected {describe(allowed)}, not {type(value).__name__}"
        arguments = typing.get_args(kinds[0]) if kinds else ()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for i, (key, child) in enumerate(items):
            if not arguments:
                element = Any
            elif isinstance(value, tuple) and Ellipsis not in arguments:
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


def _accepts(annotation: Any, node: fdl.Buildable) -> bool:
    """Whether what the node builds may stand where `annotation` is asked for."""
    made = fdl.get_callable(node)
    if annotation is Any or getattr(annotation, "_is_protocol", False):
        return True
    if isinstance(node, fdl.Partial) or typing.get_origin(annotation) is collections.abc.Callable:
        return typing.get_origin(annotation) is collections.abc.Callable
    if not isinstance(made, type):
        return True  # what a function returns is seen when it is built
    target = typing.get_origin(annotation) or annotation
    return isinstance(target, type) and issubclass(made, target)


def _sharing(node: fdl.Buildable, where: str) -> Iterator[str]:
    """A Partial builds a Config below it once and gives the same object to every call."""
    if isinstance(node, fdl.Config):
        return
    for name, value in fdl.ordered_arguments(node).items():
        made = fdl.get_callable(value) if isinstance(value, fdl.Config) else None
        if isinstance(made, type) and issubclass(made, torch.nn.Module):
            yield (
                f"{join(where, str(name))}: {made.__name__} below {type(node).__name__} would be "
                "one module shared by every call; use fdl.ArgFactory, or leave it to the caller"
            )


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
            return value.__build__(**arguments)
        except Exception as error:  # a constructor may raise anything; all are told by path
            kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
            where = daglish.path_str(state.current_path).removeprefix(".")
            said.append(f"{where or 'the root'}: {kind}{error}")
            return _FAILED

    return daglish.MemoizedTraversal.run(build, cfg), said


_FAILED = types.SimpleNamespace()


def _failed(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_failed, value))
    return value is _FAILED

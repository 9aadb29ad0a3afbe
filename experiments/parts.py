"""Components that are made from classes.

`part("dropout", Dropout)` registers the class under a name, so that `set:PATH=@dropout(p=0.1)` puts
one into a slot. A command line gives the arguments that are numbers, texts and choices. Others are
made here, or keep the default of the class.
"""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import fiddle as fdl

from nanigpt.config.registry import component
from nanigpt.config.values import argument_annotation, types_of

_WRITTEN = (bool, int, float, str)


def part(name: str, kind: type, *, slots: tuple[str, ...] = (), **nodes: Callable[[], Any]) -> None:
    """Register a class as a component.

    Args:
        name: Name of the component.
        kind: The class. The first sentence of its docstring describes the component.
        slots: As in `fits`.
        **nodes: Functions that make the arguments that are nodes.
    """
    parameters = [
        parameter.replace(annotation=annotation, kind=parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.name not in nodes
        and _can_be_written(annotation := argument_annotation(kind, parameter.name))
    ]
    signature = inspect.Signature(parameters, return_annotation=fdl.Config[kind])

    def make(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        return fdl.Config(kind, **{name: node() for name, node in nodes.items()}, **given)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = kind.__doc__
    make.__signature__ = signature  # type: ignore[attr-defined]
    make.__annotations__ = {p.name: p.annotation for p in parameters}
    make.__annotations__["return"] = signature.return_annotation
    component(fits(*slots)(make))


def fits(*slots: str) -> Callable[[Callable], Callable]:
    """Say which arguments a component is for, where their type is any module.

    Args:
        *slots: Names of arguments, or ends of names after a `_`: `norm` is also `attention_norm`.
    """

    def say(function: Callable) -> Callable:
        function.slots = slots  # type: ignore[attr-defined]
        return function

    return say


def _can_be_written(annotation: Any) -> bool:
    """Return whether a value of this type, besides None, can be given on a command line."""
    return any(
        t in _WRITTEN
        or typing.get_origin(t) in (typing.Literal, tuple, list, dict)
        or getattr(t, "__name__", "") in ("dtype", "Sequence")
        for t in types_of(annotation)
        if t is not types.NoneType
    )

"""The places of a config that take a component."""

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import typing_extensions
from fiddle import daglish

from nanigpt.config.paths import arguments, join
from nanigpt.config.protocols import is_callable, is_protocol
from nanigpt.config.registry import components
from nanigpt.config.values import (
    argument_annotation,
    element_annotation,
    made_by_components,
    takes_anything,
    takes_node,
    types_of,
)

_CONTAINERS = (list, tuple, dict)


def slots(cfg: fdl.Buildable) -> dict[str, list[str]]:
    """Return the paths that take each component, with `[*]` for all indices and keys.

    The annotations of arguments decide. An argument that takes any module says nothing; there the
    component says the names of arguments that it is for.
    """
    places = list(_places(cfg))
    made = dict(made_by_components())
    found = {}
    for name, function in components().items():
        if name not in made:  # it does not say what it returns
            continue
        kind, what = made[name]
        fitting = [place for place in places if takes_node(place[2], kind, what)]
        names = getattr(function, "slots", ())
        named = [p for p, a, _ in fitting if any(a == n or a.endswith(f"_{n}") for n in names)]
        typed = [p for p, _, allowed in fitting if _is_for(allowed, kind, what)]
        # A component with an argument of its own class is not for those of a wider protocol.
        exact = [p for p, _, allowed in fitting if p in typed and what in allowed]
        found[name] = list(dict.fromkeys(named or exact or typed))
    return found


def _is_for(allowed: list[Any], kind: type[fdl.Buildable], made: Any) -> bool:
    """Return whether types that are narrower than any module or any callable take a component."""
    for t in allowed:
        if takes_anything([t]) or getattr(t, "__module__", "").startswith("torch"):
            continue
        if is_callable(t) and not issubclass(kind, fdl.Partial):
            continue
        if takes_node([t], kind, made) and (not is_protocol(t) or _same_types(made, t)):
            return True
    return False


def _same_types(made: Any, protocol: Any) -> bool:
    """Return whether methods have parameters of the types that the protocol asks for.

    `takes_node` compares how methods are called, and many classes are called with two arguments.
    """
    protocol = typing.get_origin(protocol) or protocol
    if not isinstance(made, type) or protocol in made.__mro__:
        return True
    methods = [m for m in typing_extensions.get_protocol_members(protocol) if m in dir(made)]
    for name in methods:
        asked, has = _types(getattr(protocol, name, None)), _types(_method(made, name))
        if not all(map(_agree, asked, has)):
            return False
    return True


def _agree(asked: Any, has: Any) -> bool:
    one, other = types_of(asked), types_of(has)
    return takes_anything(one) or takes_anything(other) or set(one) <= set(other)


def _method(made: type, name: str) -> Any:
    is_module = name == "__call__" and hasattr(made, "forward")
    return getattr(made, "forward" if is_module else name)


def _types(function: Any) -> list[Any]:
    """Return the annotations of a method's parameters after `self`."""
    if not callable(function):
        return []
    try:
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters)[1:]
    except Exception:  # evaluating an annotation may raise anything
        return []
    return [hints.get(name, Any) for name in parameters]


def _places(cfg: fdl.Buildable) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield path, name and types of each argument, and of the elements of containers."""
    seen = set()
    for node, path in daglish.iterate(cfg):
        if not isinstance(node, fdl.Buildable):
            continue
        where = re.sub(r"\[[^]]*\]", "[*]", daglish.path_str(path).removeprefix("."))
        function = fdl.get_callable(node)
        if (where, function) in seen:
            continue
        seen.add((where, function))
        for argument in filter(lambda a: isinstance(a, str), arguments(node)):
            annotation = argument_annotation(function, argument)
            if (where, argument) in seen:
                continue
            seen.add((where, argument))
            yield join(where, argument), argument, types_of(annotation)
            for kind in _CONTAINERS:
                element = element_annotation(annotation, kind)
                if element is not Any:
                    yield f"{join(where, argument)}[*]", argument, types_of(element)

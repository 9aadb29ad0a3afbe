"""The places of a config that take a component."""

import re
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.paths import arguments, join
from nanigpt.config.registry import components
from nanigpt.config.values import (
    argument_annotation,
    element_annotation,
    is_for,
    made_by_components,
    takes_node,
    types_of,
)


def slots(cfg: fdl.Buildable) -> dict[str, list[str]]:
    """Return the paths that take each component, with `[*]` for all indices.

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
        typed = [p for p, _, allowed in fitting if is_for(allowed, kind, what)]
        # A component with an argument of its own class is not for those of a wider protocol.
        exact = [p for p, _, allowed in fitting if p in typed and what in allowed]
        found[name] = list(dict.fromkeys(named if names else exact or typed))
    return found


def _places(cfg: fdl.Buildable) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield path, name and types of each argument, and of the elements of containers."""
    seen = set()
    for node, path in daglish.iterate(cfg):
        if not isinstance(node, fdl.Buildable):
            continue
        where = re.sub(r"\[\d+\]", "[*]", daglish.path_str(path).removeprefix("."))
        for argument, value in arguments(node).items():
            if isinstance(argument, int) or (where, argument) in seen:
                continue
            seen.add((where, argument))
            annotation = argument_annotation(fdl.get_callable(node), argument)
            place = join(where, argument)
            yield place, argument, types_of(annotation)
            if isinstance(value, dict):
                element = types_of(element_annotation(annotation, dict))
                yield from ((join(place, (key,)), argument, element) for key in value)
            elif isinstance(value, (list, tuple)):
                element = types_of(element_annotation(annotation, type(value)))
                yield f"{place}[*]", argument, element

"""`set:PATH=VALUE` and `tag:TAG=VALUE`: values of a DAG, typed by annotation."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import fiddle as fdl
from fiddle import daglish, tagging

from nanigpt.config.compose.call import Call
from nanigpt.config.flatten import leaves
from nanigpt.config.paths import (
    Element,
    arguments,
    check_element,
    child,
    expand,
    join,
    parse_path,
)
from nanigpt.config.protocols import class_lacks, is_callable, is_protocol, partial_lacks
from nanigpt.config.registry import find_component
from nanigpt.config.values import (
    argument_annotation,
    convert,
    describe,
    element_annotation,
    parse_value,
    takes_node,
    types_of,
)
from nanigpt.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Place:
    """An argument of a node, or what lies inside of it in lists, tuples and dicts."""

    node: Any
    argument: Any
    keys: tuple[Any, ...]
    path: str
    annotation: Any

    def below(self, value: Any, element: Element) -> "Place":
        """Return the place of a child of `value`, the value at this place."""
        path = join(self.path, element)
        if isinstance(value, fdl.Buildable):
            argument: Any = element  # a name or a number
            annotation = argument_annotation(fdl.get_callable(value), argument)
            return Place(value, argument, (), path, annotation)
        key = element[0] if isinstance(element, tuple) else element
        annotation = element_annotation(self.annotation, type(value), key)
        return replace(self, keys=(*self.keys, key), path=path, annotation=annotation)

    def set(self, value: Any) -> None:
        """Set the value at this place; containers are replaced by new ones.

        A default container belongs to the class, and Fiddle's history knows only arguments.
        """
        if self.keys:
            value = _with(arguments(self.node)[self.argument], self.keys, value)
        if isinstance(self.argument, int):
            self.node[self.argument] = value
        else:
            setattr(self.node, self.argument, value)


def apply_override(cfg: fdl.Buildable, assignment: str) -> None:
    """Set all arguments, elements and dict values of `cfg` that the path matches, in place.

    Raises:
        UsageError: the path leads nowhere, or the value is not of the argument's type.
    """
    path, text = _split(assignment, "PATH=VALUE")
    _set_all(places(cfg, path), lambda annotation: read_value(text, annotation), text)


def apply_tag(cfg: fdl.Buildable, assignment: str) -> None:
    """Set every argument of `cfg` that has the tag, or a tag derived from it.

    Raises:
        UsageError: nothing has such a tag, or the value is not of an argument's type.
    """
    name, text = _split(assignment, "TAG=VALUE")
    tags = tagging.list_tags(cfg, add_superclasses=True)
    for tag in tags:
        if tag.__name__ == name and (instead := getattr(tag, "set_instead", None)):
            raise UsageError(f"its arguments never have one value; use {instead}")
    by_name = {t.__name__: t for t in tags if not hasattr(t, "set_instead")}
    if name not in by_name:
        problem = f"no argument of this config has the tag {name!r}"
        raise UnknownName(problem, name, sorted(by_name))
    _set_all(tagged(cfg, by_name[name]), lambda annotation: read_value(text, annotation), text)


def set_value(cfg: fdl.Buildable, key: str | type[fdl.Tag], value: Any) -> None:
    """Set all places that the path or tag matches to copies of a Python value, such as a config.

    Raises:
        UsageError: the path leads nowhere, nothing has the tag, or a plain value is not of an
            argument's type.
    """
    targets = places(cfg, key) if isinstance(key, str) else tagged(cfg, key)
    if not targets:
        name = getattr(key, "__name__", key)
        raise UsageError(f"no argument of this config has the tag {name!r}")
    _set_all(targets, lambda annotation: convert(copy.deepcopy(value), annotation), repr(value))


def places(cfg: fdl.Buildable, path: str) -> list[Place]:
    """Find all that a path matches.

    Raises:
        UsageError: the path leads nowhere.
    """
    *parents, last = parse_path(path)
    found = [(cfg, Place(None, "", (), "", Any))]
    try:
        for element in parents:
            found = [
                (child(value, e, place.path), place.below(value, e))
                for value, place in found
                for e in expand(value, element, place.path)
            ]
        targets = []
        for value, place in found:
            for e in expand(value, last, place.path):
                check_element(value, e, place.path)
                targets.append(place.below(value, e))
    except UnknownName as error:
        raise _elsewhere(error, cfg, path) from error
    return targets


def tagged(cfg: fdl.Buildable, wanted: type[fdl.Tag]) -> list[Place]:
    """Find every argument that has the tag, or a tag derived from it."""
    targets = []
    for node, path in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            for argument, tags in node.__argument_tags__.items():
                if any(issubclass(tag, wanted) for tag in tags):
                    place = Place(None, "", (), daglish.path_str(path).removeprefix("."), Any)
                    targets.append(place.below(node, argument))
    return targets


def _set_all(targets: list[Place], value_for: Callable[[Any], Any], text: str) -> None:
    values = []
    for target in targets:  # all are read before any is set
        try:
            values.append(value_for(target.annotation))
        except ValueError as error:
            told = error if isinstance(error, UsageError) else UsageError(str(error))
            raise told.within(f"{target.path}={text}") from error
    for target, value in zip(targets, values, strict=True):
        target.set(value)


def read_value(text: str, annotation: Any) -> Any:
    """Read what a directive sets an argument to: a value, or `@COMPONENT`.

    Raises:
        ValueError: it is not of the annotated type.
    """
    if not text.startswith("@"):
        return parse_value(text, annotation)
    allowed = types_of(annotation)
    call = Call.parse(text[1:])
    node = call.apply(find_component(call.name))
    made = fdl.get_callable(node)
    if not takes_node(allowed, type(node), made):
        lacks_of = partial_lacks if isinstance(node, fdl.Partial) else class_lacks
        lacks = [lacks_of(made, t) for t in allowed if is_protocol(t) or is_callable(t)]
        why = f" ({lacks[0]})" if len(lacks) == 1 else ""
        raise UsageError(f"expected {describe(allowed)}, not {made.__name__}{why}")
    return node


def _with(container: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """Return the container with another element at `keys`."""
    if not keys:
        return value
    key, *rest = keys
    if isinstance(container, dict):
        return {**container, key: _with(container.get(key), tuple(rest), value)}
    items = list(container)
    items[key] = _with(items[key], tuple(rest), value)
    if isinstance(container, list):
        return items
    return type(container)(*items) if hasattr(container, "_fields") else tuple(items)


def _split(assignment: str, form: str) -> tuple[str, str]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r}: expected {form}")
    return name.strip(), text


def _elsewhere(error: UnknownName, cfg: fdl.Buildable, path: str) -> UnknownName:
    """Return an error that names other places with such an argument, or the same error."""
    paths = [p for p, _ in leaves(cfg) if p.rpartition(".")[2] == error.name]
    if not paths or any(near.endswith(f"_{error.name}") for near in error.near):
        return error
    more = f" (and {len(paths) - 1} more)" if paths[1:] else ""
    return UnknownName(f"{error.problem}; there is {paths[0]}{more}", path, near=paths[:1])

"""`set:PATH=VALUE` and `tag:TAG=VALUE`: values of a DAG, typed by annotation."""

from dataclasses import dataclass
from typing import Any

import fiddle as fdl
from fiddle import daglish, tagging

from nanigpt.config.paths import Element, check_element, follow, join, parse_path
from nanigpt.config.registry import nearest
from nanigpt.config.values import argument_annotation, element_annotation, parse_value
from nanigpt.errors import UsageError


@dataclass(frozen=True)
class _Target:
    """A place that takes a value: an argument of a node, or an element of a list or dict."""

    container: Any
    element: Element
    path: str
    annotation: Any

    def set(self, value: Any) -> None:
        if isinstance(self.element, str):
            setattr(self.container, self.element, value)
        else:
            key = self.element[0] if isinstance(self.element, tuple) else self.element
            self.container[key] = value


def apply_override(cfg: fdl.Buildable, assignment: str) -> None:
    """Sets arguments, list elements or dict values of `cfg` in place: all that the path matches.

    Raises:
        UsageError: the path leads nowhere, or the value is not of the argument's type.
    """
    path, text = _split(assignment, "PATH=VALUE")
    *parents, last = parse_path(path)
    places = [(cfg, "", Any)]
    for element in parents:
        places = [
            (follow(node, e, walked), join(walked, e), _child_annotation(node, e, annotation))
            for node, walked, annotation in places
            for e in _expand(node, element, walked)
        ]
    targets = []
    for node, walked, annotation in places:
        for e in _expand(node, last, walked):
            check_element(node, e, walked)
            if isinstance(node, tuple):
                raise UsageError(f"{walked} is a tuple; set it whole: set:{walked}={node!r}")
            targets.append(
                _Target(node, e, join(walked, e), _child_annotation(node, e, annotation))
            )
    _set_all(targets, text)


def apply_tag(cfg: fdl.Buildable, assignment: str) -> None:
    """Sets every argument of `cfg` that has the tag, or a tag derived from it.

    Raises:
        UsageError: nothing has such a tag, or the value is not of an argument's type.
    """
    name, text = _split(assignment, "TAG=VALUE")
    by_name = {t.__name__: t for t in tagging.list_tags(cfg, add_superclasses=True)}
    if name not in by_name:
        raise UsageError(
            f"no argument of this config has the tag {name!r}; {nearest(name, sorted(by_name))}"
        )
    targets = [
        _Target(node, argument, join(_path(path), argument), argument_annotation(node, argument))
        for node, path in daglish.iterate(cfg)
        if isinstance(node, fdl.Buildable)
        for argument, tags in node.__argument_tags__.items()
        if any(issubclass(tag, by_name[name]) for tag in tags)
    ]
    _set_all(targets, text)


def _set_all(targets: list[_Target], text: str) -> None:
    values = []
    for target in targets:  # all are read before any is set
        try:
            values.append(parse_value(text, target.annotation))
        except ValueError as error:
            raise UsageError(f"{target.path}={text}: {error}") from error
    for target, value in zip(targets, values, strict=True):
        target.set(value)


def _split(assignment: str, form: str) -> tuple[str, str]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r}: expected {form}")
    return name.strip(), text


def _expand(container: Any, element: Element, walked: str) -> list[Element]:
    """The elements that a slice stands for; any other stands for itself."""
    if not isinstance(element, slice):
        return [element]
    if not isinstance(container, (list, tuple)):
        raise UsageError(f"{walked or 'the config'} is no list: it has no elements to choose from")
    chosen = list(range(len(container))[element])
    if not chosen:
        raise UsageError(f"{join(walked, element)} matches none of {len(container)} elements")
    return chosen


def _child_annotation(parent: Any, element: Element, annotation: Any) -> Any:
    if isinstance(element, str) and isinstance(parent, fdl.Buildable):
        return argument_annotation(parent, element)
    return element_annotation(annotation, dict if isinstance(element, tuple) else list)


def _path(path: daglish.Path) -> str:
    return daglish.path_str(path).removeprefix(".")

"""Flags that set arguments of a config to a value: `--config=tag:TAG=VALUE`, or `set:`."""

import types
from typing import Any

import fiddle as fdl
from fiddle import tagging

from nanigpt.config.compose.overrides import Place, places, read_value, tagged
from nanigpt.config.fold import Path, fold, path_text
from nanigpt.config.paths import arguments
from nanigpt.config.registry import components
from nanigpt.errors import UsageError

_MANY = 4  # more flags than a person would type


def flags_that_set(cfg: fdl.Buildable, paths: list[Path], value: Any) -> list[str]:
    """Return flags that set the values at some paths; none where many would be needed.

    A tag is preferred where it reaches all of them and no other argument.
    """
    text = _text(value)
    try:
        targets = [place for path in paths for place in places(cfg, path_text(path))]
    except UsageError:  # an attribute of an object, no argument of the config
        return []
    if text is None or not all(_reads(text, value, place) for place in targets):
        return []
    if tag := _tag(cfg, targets):
        return [f"--config=tag:{tag.__name__}={text}"]
    flags = [f"--config=set:{path_text(path)}={text}" for path in fold(paths)]
    return flags if len(flags) <= _MANY else []


def _text(value: Any) -> str | None:
    """Write a value as a directive has it; None where it cannot be written."""
    if isinstance(value, str):
        return value
    if isinstance(value, (type, types.FunctionType)):
        names = [name for name, function in components().items() if _makes(function, value)]
        return f"@{names[0]}" if len(names) == 1 else None
    if isinstance(value, (bool, int, float, type(None), list, tuple, dict)):
        return repr(value)
    if type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    return None


def _makes(component: Any, made: Any) -> bool:
    if component is made:
        return True
    try:
        return fdl.get_callable(component()) is made
    except TypeError:  # it takes arguments that nobody has chosen
        return False


def _reads(text: str, value: Any, place: Place) -> bool:
    """Return whether a directive would read the text as this value."""
    try:
        found = read_value(text, place.annotation)
    except ValueError:
        return False
    return isinstance(found, fdl.Buildable) or found == value


def _tag(cfg: fdl.Buildable, targets: list[Place]) -> type[fdl.Tag] | None:
    """Return a tag that reaches the targets and no other argument.

    A tag whose class says `one_value = True` may also reach others of the same value.
    """
    if any(target.keys for target in targets):
        return None
    wanted = {(id(target.node), target.argument) for target in targets}
    current = [_plain(target) for target in targets]
    candidates = set.intersection(
        *(set(target.node.__argument_tags__.get(target.argument, ())) for target in targets)
    )
    known = tagging.list_tags(cfg, add_superclasses=True)
    settable = {tag for tag in candidates & set(known) if not hasattr(tag, "set_instead")}
    for tag in sorted(settable, key=lambda tag: tag.__name__):
        others = [p for p in tagged(cfg, tag) if (id(p.node), p.argument) not in wanted]
        if not others or (
            getattr(tag, "one_value", False) and all(_plain(other) in current for other in others)
        ):
            return tag
    return None


def _plain(place: Place) -> Any:
    """Return the value at a place, in a form that is equal for equal values of one type."""
    value = arguments(place.node).get(place.argument)
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return (type(value), value) if plain else id(value)

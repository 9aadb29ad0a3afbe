"""What stands at a path of a config, and which node holds it."""

from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.fold import Path
from nanigpt.config.paths import arguments


def owner(cfg: fdl.Buildable, path: Path) -> tuple[fdl.Buildable, Any] | None:
    """Return the node, and its argument, that hold the value at a path; None for the root.

    Where the path leaves the config, the last argument on the way is meant.
    """
    return next(((node, key) for node, key, _ in reversed(list(_walk(cfg, path))) if node), None)


def value_at(cfg: fdl.Buildable, path: Path) -> Any:
    """Return the value at a path, or `fdl.NO_VALUE` if the path leaves the config."""
    walked = list(_walk(cfg, path))
    if len(walked) < len(path):
        return fdl.NO_VALUE
    return walked[-1][2] if walked else cfg


def _walk(cfg: fdl.Buildable, path: Path) -> Iterator[tuple[fdl.Buildable | None, Any, Any]]:
    """Follow a path as far as it goes: the node passed, if it is one, the key, and the value."""
    value: Any = cfg
    for step in path:
        key: Any = step[0] if isinstance(step, tuple) else step
        node = value if isinstance(value, fdl.Buildable) else None
        try:
            value = arguments(node)[key] if node is not None else value[key]
        except (TypeError, KeyError, IndexError):  # an attribute of an object
            return
        yield node, key, value

"""JSON with a line for each argument, so that a change of one argument changes one line."""

import json
from typing import Any

_WIDTH = 100


def lay_out(value: Any, indent: int = 0) -> str:
    """Return a value as JSON.

    Lists and objects without nodes take one line if they fit, except the object itself that was
    given and the arguments of a node.
    """
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    if indent and _is_plain(value):
        line = json.dumps(value)
        if len(line) + indent <= _WIDTH:
            return line
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, list):
        lines = [inner + lay_out(element, indent + 1) for element in value]
        return "[\n" + ",\n".join(lines) + f"\n{outer}]"
    lines = [
        f"{inner}{json.dumps(key)}: {lay_out(part, indent + 1)}" for key, part in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{outer}}}"


def _is_plain(value: Any) -> bool:
    """Return whether a value has no more than two levels, and no arguments of a node."""
    if isinstance(value, dict):
        if len(value) > 1 and next(iter(value)).startswith("@"):
            return False
        value = list(value.values())
    return not any(
        isinstance(part, (dict, list)) and any(isinstance(v, (dict, list)) for v in _values(part))
        for part in value
    ) and all(_is_plain(part) for part in value if isinstance(part, (dict, list)))


def _values(value: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value

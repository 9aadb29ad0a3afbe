"""The unit of an argument, where its annotation has one.

    interval: Annotated[int, Unit("steps")]
    steps: Annotated[int, tags.Steps]        # a tag with `unit = "steps"`

Whatever stands in an `Annotated` and has a `unit` is asked, so that components need no import of
this package.
"""

import functools
import inspect
import typing
from typing import Any

import fiddle as fdl


def unit(node: fdl.Buildable, name: str | int) -> str:
    """Return the unit of an argument's value, such as `steps`, or "" if it has none."""
    return _units(fdl.get_callable(node)).get(str(name), "")


@functools.cache
def _units(function: Any) -> dict[str, str]:
    target = (
        inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
    )
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception:  # check tells of an annotation that cannot be resolved
        return {}
    return {
        name: about.unit
        for name, hint in hints.items()
        for about in getattr(hint, "__metadata__", ())
        if isinstance(getattr(about, "unit", None), str)
    }

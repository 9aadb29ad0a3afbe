"""Component factories of classes: functions that return `fdl.Config(CLASS, ...)`."""

import enum
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import fiddle as fdl

_NO_PARTS = (BaseException, enum.Enum, fdl.Tag)


def has_factory(value: Any) -> bool:
    """Return whether a value is a class that a config can build."""
    if not isinstance(value, type) or issubclass(value, _NO_PARTS):
        return False
    if inspect.isabstract(value) or getattr(value, "_is_protocol", False):
        return False
    try:
        inspect.signature(value)
    except ValueError:  # a class in C may not tell it
        return False
    return True


def factory_of(made: type) -> Callable[..., fdl.Config]:
    """Return a function with the arguments of a class, which returns a config of the class."""
    signature = inspect.signature(made)
    hints = _hints(made)

    @functools.wraps(made, updated=())
    def factory(*args: Any, **kwargs: Any) -> fdl.Config:
        signature.bind(*args, **kwargs)  # raises TypeError now, not when the config is built
        return fdl.Config(made, *args, **kwargs)

    # Without tags, as a listing shows it.
    parameters = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    named: Any = factory
    named.__signature__ = signature.replace(parameters=parameters)
    named.__annotations__ = {**hints, "return": fdl.Config[made]}
    return factory


def _hints(made: type) -> dict[str, Any]:
    """Return the types of a constructor's arguments; none where one cannot be resolved."""
    try:
        return typing.get_type_hints(inspect.getattr_static(made, "__init__"))
    except Exception:  # evaluating an annotation may raise anything; a check of the config tells it
        return {}

"""A mark for functions that only compute, which a recorded config may therefore name."""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)

_pure: set[Callable] = set()


def pure(function: F) -> F:
    """Mark a function that reads and writes no file, starts no process and runs no other code.

    A record (`config.json`) may name a class of a registered package, but only functions with this
    mark, because whoever loads a record builds what it names. Put it below `@classmethod`.
    """
    _pure.add(function)
    return function


def is_pure(function: Callable) -> bool:
    """Return whether a function itself, not one that it wraps, is marked."""
    return function in _pure

"""Configs that are nested deeper than Python's stack."""

import functools
import sys
from collections.abc import Callable

from nanigpt.errors import UsageError

TOO_DEEP = (
    f"nests deeper than Python's limit of {sys.getrecursionlimit()} calls; hold the nodes in a list"
)


def refuses_depth(function: Callable) -> Callable:
    """Make a function that walks a config raise a UsageError if the config is too deep."""

    @functools.wraps(function)
    def walk(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except RecursionError as error:
            raise UsageError(f"the config {TOO_DEEP}") from error

    return walk

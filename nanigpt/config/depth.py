"""Configs that are nested deeper than Python's stack."""

import functools
import sys
from collections.abc import Callable

from nanigpt.errors import UsageError


def refuses_depth(function: Callable) -> Callable:
    """Makes a function that walks a config raise a UsageError where the stack ends."""

    @functools.wraps(function)
    def walk(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except RecursionError as error:
            raise UsageError(
                "the config is nested too deep: more calls than Python's limit of "
                f"{sys.getrecursionlimit()}; hold the nodes in a list"
            ) from error

    return walk

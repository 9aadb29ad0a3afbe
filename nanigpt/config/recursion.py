"""Configs that are nested deeper than Python's stack."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nanigpt.errors import UsageError

TOO_DEEP = (
    f"nests deeper than Python's limit of {sys.getrecursionlimit()} calls; hold the nodes in a list"
)


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def refuses_depth(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function that walks a config raise a UsageError if the config is too deep."""

    @functools.wraps(function)
    def walk(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except RecursionError as error:
            raise UsageError(f"the config {TOO_DEEP}") from error

    return walk

"""Statements that a module's class makes about it, such as its tensor-parallel plan."""

from typing import Any

from torch import nn


def declared(module: nn.Module, name: str) -> Any:
    """Return what a module says under `name`, or None.

    A statement describes a forward pass. A subclass that has a forward pass of its own does not
    inherit what the class above says about another one: it makes the statement itself, or none.
    """
    if name in vars(module):
        return vars(module)[name]
    for kind in type(module).__mro__:
        if name in vars(kind):
            return getattr(module, name)
        if "forward" in vars(kind):
            return None
    return None

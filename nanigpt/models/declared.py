"""Statements that a module's class makes about it, such as its tensor-parallel plan."""

from typing import Any

from torch import nn


def declared(module: nn.Module, name: str) -> Any:
    """Return the value that a module declares under `name`, or None.

    A statement describes a forward pass. So a subclass with its own forward pass does not inherit
    statements of its base classes. It makes its own statement, or none.
    """
    if name in vars(module):
        return vars(module)[name]
    for kind in type(module).__mro__:
        if name in vars(kind):
            return getattr(module, name)
        if "forward" in vars(kind):
            return None
    return None

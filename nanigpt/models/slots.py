"""Check the modules that a user puts into a slot."""

import inspect
from collections.abc import Iterator

from torch import nn

from nanigpt.problems import Problem


def uncallable(slot: str, module: object, *arguments: str) -> Iterator[Problem]:
    """Yield a problem if a module cannot be called with this number of positional arguments.

    Args:
        slot: Argument that received the module.
        arguments: Names of the values that the caller passes.
    """
    call = f"a module that is called with ({', '.join(arguments)})"
    if not isinstance(module, nn.Module):
        yield Problem(slot, module, call)
        return
    try:
        signature = inspect.signature(type(module).forward)
        signature.bind(module, *arguments)
    except TypeError as error:
        yield Problem(slot, type(module), f"{call}; its forward says: {error}")

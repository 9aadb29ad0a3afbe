"""Optimizers of PyTorch without their import of torch.compile."""

import functools
import inspect
from typing import Any, TypeVar

import torch

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


@functools.cache
def without_dynamo(kind: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass that does the same, but does not import torch._dynamo on its first use.

    The import takes seconds and much memory. Its purpose is to keep torch.compile out of the
    optimizer's methods, which nanigpt does not compile.
    """
    hidden = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in hidden}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    methods["__doc__"] = kind.__doc__
    return type(kind.__name__, (kind,), methods)

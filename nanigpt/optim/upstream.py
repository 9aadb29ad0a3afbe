"""Optimizers of PyTorch without what torch.compile would need of them."""

import functools
import inspect

import torch


@functools.cache
def without_dynamo(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """`kind`, which does the same, but whose first use does not import torch._dynamo.

    The import takes seconds and much memory. It keeps torch.compile out of the optimizer's methods,
    which are not compiled here.
    """
    hidden = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in hidden}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    methods["__doc__"] = kind.__doc__
    return type(kind.__name__, (kind,), methods)

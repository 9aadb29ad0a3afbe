"""Replace parameters of a model, and keep their other properties."""

from collections.abc import Iterator

import torch
from torch import nn


def named_state(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """Yield (full name, owner, local name, tensor) of parameters and buffers, with every alias."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield f"{prefix}.{local}" if prefix else local, module, local, tensor


class Places:
    """Record of each parameter's places in a model, to replace it everywhere.

    Sharding replaces a parameter by another tensor. The new one must keep whether it is trained
    (`requires_grad`), the attributes that somebody set on it, and every name that it has: a tied
    weight stays one parameter.
    """

    def __init__(self, model: nn.Module):
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._places.setdefault(parameter, []).append((module, name))

    def replace(self, parameter: nn.Parameter, tensor: torch.Tensor) -> nn.Parameter:
        """Put `tensor` in every place of `parameter`, and return it as a parameter."""
        new = like(parameter, tensor)
        places = self._places.pop(parameter)
        for module, name in places:
            module._parameters[name] = new
        self._places[new] = places
        return new


def like(parameter: nn.Parameter, tensor: torch.Tensor) -> nn.Parameter:
    """Return `tensor` as a parameter with `requires_grad` and attributes of `parameter`."""
    new = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    new.__dict__.update(parameter.__dict__)
    return new

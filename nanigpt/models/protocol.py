"""What the project asks of a model, and what holds for a model that does not answer.

Any `nn.Module` can be trained whose forward is

    forward(first, *, finish=None, targets={}, **places)

(`nanigpt.tasks.task` explains `finish`). `Decoder` defines everything below by itself. A model
that lacks a method or attribute gets the default that the function of its name states.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from nanigpt.models.counts import ParameterCounts, idle_parameters


class Finish(Protocol):
    """Makes sums of losses of hidden states; the model calls it in place of its head."""

    def __call__(
        self, head: nn.Module, hidden: torch.Tensor, /, *further: torch.Tensor, **targets: Any
    ) -> torch.Tensor: ...


def blocks(model: nn.Module) -> list[Any]:
    """Return the blocks that are compiled, recomputed and sharded one by one.

    `model.blocks()`, where None stands for a block of another pipeline stage. By default the
    elements of every outermost `nn.ModuleList`.
    """
    if hasattr(model, "blocks"):
        return model.blocks()
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def shard_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules whose parameters are gathered together, in the order of the forward pass.

    `model.shard_groups()`. By default each of `blocks`; all other parameters are gathered at the
    start of the forward pass and kept.
    """
    if hasattr(model, "shard_groups"):
        return model.shard_groups()
    return [[block] for block in blocks(model) if block is not None]


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of activations.

    `model.compute_dtype`, or that of `model.embedding`. By default the dtype of the first
    floating-point parameter.
    """
    for owner in (model, getattr(model, "embedding", None)):
        if isinstance(found := getattr(owner, "compute_dtype", None), torch.dtype):
            return found
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def max_sequence_length(model: nn.Module) -> int | None:
    """Return `model.max_sequence_length`; None, the default, is no limit."""
    return getattr(model, "max_sequence_length", None)


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Return `model.parameter_counts()`. By default no parameter is an embedding's, nor tied."""
    if hasattr(model, "parameter_counts"):
        return model.parameter_counts()
    total = sum(p.numel() for p in model.parameters())
    return ParameterCounts(
        total=total, active=total - idle_parameters(model), embedding=0, tied=False
    )


def flops_of_forward(model: nn.Module, call: Callable[[nn.Module], Any]) -> int:
    """Count the FLOPs of the matrix products in a forward pass that `call` makes, on meta."""
    from torch.utils.flop_counter import FlopCounterMode

    if any(not p.is_meta for p in model.parameters()):
        model = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        call(model)
    return counter.get_total_flops()


def can_be_split(model: nn.Module) -> bool:
    """Return whether a pipeline can divide the model: whether it has a method `part`."""
    return hasattr(model, "part")

"""Define the project's requirements of a model, and defaults for a model that declares less.

Any `nn.Module` can be trained whose forward is

    forward(first, *, finish=None, targets={}, **places)

(`nanigpt.tasks.task` explains `finish`). `Decoder` defines everything below by itself. A model that
lacks a method or attribute gets the default that the function of its name states.
"""

from typing import Any, Protocol

import torch
from torch import nn

from nanigpt.models.counts import ParameterCounts
from nanigpt.models.counts import parameter_counts as count_parameters


class Finish(Protocol):
    """Function that sums losses of hidden states; the model calls it in place of its head."""

    def __call__(
        self, head: nn.Module, hidden: torch.Tensor, /, *further: torch.Tensor, **targets: Any
    ) -> torch.Tensor: ...


def blocks(model: nn.Module) -> list[Any]:
    """Return the blocks that are compiled, recomputed and sharded one by one.

    They are `model.blocks()`, where None stands for a block of another pipeline stage. By default
    they are the elements of every outermost `nn.ModuleList`, which may itself be named `blocks`.
    """
    if _has_method(model, "blocks"):
        answering: Any = model
        return answering.blocks()
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def blocks_here(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that this rank has."""
    return [block for block in blocks(model) if block is not None]


def recomputation(block: nn.Module) -> str:
    """Return the mode in which a block recomputes: its `activation_checkpointing`, or `none`."""
    return getattr(block, "activation_checkpointing", "none")


def body(block: nn.Module) -> str:
    """Return the name of the method that is compiled and recomputed: `compute`, or `forward`."""
    return "compute" if hasattr(block, "compute") else "forward"


def shard_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules whose parameters are gathered together, in the order of the forward pass.

    They are `model.shard_groups()`, or by default each of `blocks`; all other parameters are
    gathered at the start of the forward pass and kept.
    """
    if _has_method(model, "shard_groups"):
        answering: Any = model
        return answering.shard_groups()
    return [[block] for block in blocks_here(model)]


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of activations.

    It is `model.compute_dtype`, or that of `model.embedding`, or by default the dtype of the first
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
        answering: Any = model
        return answering.parameter_counts()
    return count_parameters(model)


def _has_method(model: nn.Module, name: str) -> bool:
    """Return whether the model has a method; a child module of that name does not count."""
    return hasattr(model, name) and not isinstance(getattr(model, name), nn.Module)

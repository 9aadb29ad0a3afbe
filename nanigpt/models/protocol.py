"""The answers that sharding, compilation and recomputation ask a model for, and their defaults.

A model is any `nn.Module`. It may answer by methods or attributes of these names; what it leaves
out has the default that is stated here:

    blocks()                 layers that are compiled and recomputed one by one; none
    shard_groups()           modules whose parameters FSDP gathers together; the model as a whole
    compute_dtype            dtype of its activations; that of its first parameter
    max_sequence_length      longest sequence that it takes; no limit
    part(layers, ...)        modules of a pipeline stage (`Decoder.part`); no pipeline
"""

import torch
from torch import nn


def blocks(model: nn.Module) -> list[nn.Module | None]:
    """Return the layers of a model; None stands for one that another rank has."""
    own = getattr(model, "blocks", None)
    return list(own()) if callable(own) else []


def blocks_here(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that this rank has."""
    return [block for block in blocks(model) if block is not None]


def shard_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return groups of modules whose parameters are gathered together, in the forward's order."""
    own = getattr(model, "shard_groups", None)
    return own() if own is not None else []


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's activations."""
    own = getattr(model, "compute_dtype", None)
    if own is not None:
        return own
    first = next(model.parameters(), None)
    return torch.float32 if first is None else first.dtype


def max_sequence_length(model: nn.Module) -> int | None:
    """Return the longest sequence that a model takes, or None if there is no limit."""
    return getattr(model, "max_sequence_length", None)


def recomputation(block: nn.Module) -> str:
    """Return the mode in which a layer recomputes: its `activation_checkpointing`, or `none`."""
    return getattr(block, "activation_checkpointing", "none")


def body(block: nn.Module) -> str:
    """Return the name of the method that is compiled and recomputed: `compute`, or `forward`."""
    return "compute" if hasattr(block, "compute") else "forward"

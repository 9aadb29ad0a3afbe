"""Tensors that are plain attributes of an object.

A run is built on meta, where tensors have no values. Parameters and buffers get memory and values
later; a tensor that is a plain attribute does not.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

# Every module has these attributes. They hold its parameters and buffers, too.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def without_values(holder: object) -> Iterator[str]:
    """Yield the names of an object's attributes that hold tensors on meta.

    They are tensors, or lists, tuples and dicts that contain one.
    """
    for name, value in getattr(holder, "__dict__", {}).items():
        if isinstance(holder, nn.Module) and name in OF_EVERY_MODULE:
            continue
        held = tree_leaves(value) if isinstance(value, (list, tuple, dict)) else [value]
        if any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in held):
            yield name

"""Caches of past positions, for generation.

Shapes: B batch, L new positions, M capacity.
"""

import torch


class LayerCache:
    """The cache of one attention layer.

    Args:
        capacity: Largest number of positions.

    Attributes:
        length: Number of positions in the cache.
        kept: Tensors of those positions, each `[B, M, ...]`: keys and values, or the latent from
            which both are computed.
    """

    def __init__(self, *, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.kept: list[torch.Tensor] = []

    def positions(self, length: int, device: torch.device) -> torch.Tensor:
        """Return positions_1L of the next `length` tokens."""
        return torch.arange(self.length, self.length + length, device=device).unsqueeze(0)

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        """Store new positions, along dim 1 of each tensor; return the tensors of all positions."""
        end = self.length + new[0].shape[1]
        if end > self.capacity:
            raise ValueError(f"{end} positions in a cache for {self.capacity}")
        if not self.length:  # the first positions determine batch, features and dtype
            self.kept = [x.new_zeros(x.shape[0], self.capacity, *x.shape[2:]) for x in new]
        for kept, x in zip(self.kept, new, strict=True):
            kept[:, self.length : end] = x
        self.length = end
        return [kept[:, :end] for kept in self.kept]

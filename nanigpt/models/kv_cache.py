"""What is kept of past positions, for generation.

Shapes: B batch, L new positions, M capacity.
"""

import torch


class LayerCache:
    """The cache of one attention layer: room for `capacity` positions.

    Attributes:
        length: positions that it holds.
        kept: what it holds of them, each `[B, M, ...]`; keys and values, or a latent that both are
            made of.
    """

    def __init__(self, *, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.kept: list[torch.Tensor] = []

    def positions(self, length: int, device: torch.device) -> torch.Tensor:
        """positions_1L of the next `length` tokens."""
        return torch.arange(self.length, self.length + length, device=device).unsqueeze(0)

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        """Stores new positions, dim 1 of each tensor; returns those of all positions so far."""
        end = self.length + new[0].shape[1]
        if end > self.capacity:
            raise ValueError(f"{end} positions in a cache for {self.capacity}")
        if not self.length:  # the first positions tell batch, features and dtype
            self.kept = [x.new_zeros(x.shape[0], self.capacity, *x.shape[2:]) for x in new]
        for kept, x in zip(self.kept, new, strict=True):
            kept[:, self.length : end] = x
        self.length = end
        return [kept[:, :end] for kept in self.kept]

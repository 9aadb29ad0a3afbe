"""Keys and values of past positions, for generation.

Shapes: B batch, L new positions, M capacity, G KV heads, K head_dim.
"""

import torch


class LayerCache:
    """The cache of one attention layer: room for `capacity` positions."""

    def __init__(self, *, capacity: int):
        self.capacity = capacity
        self.length = 0

    def append(
        self, k_BLGK: torch.Tensor, v_BLGK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new positions; returns the keys and values of all positions so far."""
        end = self.length + k_BLGK.shape[1]
        if end > self.capacity:
            raise ValueError(f"{end} positions in a cache for {self.capacity}")
        if not self.length:  # the first positions tell batch, heads and dtype
            shape = (k_BLGK.shape[0], self.capacity, *k_BLGK.shape[2:])
            self.k_BMGK, self.v_BMGK = k_BLGK.new_zeros(shape), v_BLGK.new_zeros(shape)
        self.k_BMGK[:, self.length : end] = k_BLGK
        self.v_BMGK[:, self.length : end] = v_BLGK
        self.length = end
        return self.k_BMGK[:, :end], self.v_BMGK[:, :end]

"""Keys and values of past positions, for generation.

Shapes: B batch, L new positions, M capacity, G KV heads, K head_dim.
"""

import torch


class LayerCache:
    """The cache of one attention layer: room for `capacity` positions."""

    def __init__(
        self,
        *,
        batch_size: int,
        capacity: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (batch_size, capacity, n_kv_heads, head_dim)
        self.k_BMGK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BMGK = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def append(
        self, k_BLGK: torch.Tensor, v_BLGK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new positions; returns the keys and values of all positions so far."""
        end = self.length + k_BLGK.shape[1]
        if end > self.k_BMGK.shape[1]:
            raise ValueError(f"{end} positions in a cache for {self.k_BMGK.shape[1]}")
        self.k_BMGK[:, self.length : end] = k_BLGK
        self.v_BMGK[:, self.length : end] = v_BLGK
        self.length = end
        return self.k_BMGK[:, :end], self.v_BMGK[:, :end]

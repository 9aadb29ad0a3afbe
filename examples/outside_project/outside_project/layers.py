"""Layers of a small language model, as plain nn.Modules that import nothing of nanigpt.

Shapes: B batch, L sequence, D dim, H heads, K head_dim.
"""

import torch
from torch import nn
from torch.nn import functional as F


class ReluSquared(nn.Module):
    """Feed-forward network with the square of ReLU and a scale for each feature.

    It computes every position separately, so ranks of tensor parallelism may share the sequence.
    """

    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int, hidden_dim: int, scale: float = 0.5):
        super().__init__()
        self.initial_scale = scale
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        """Set parameters outside of modules of torch.nn, which reset themselves."""
        nn.init.constant_(self.scale, self.initial_scale)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.scale * self.down(F.relu(self.up(x_BLD)).square())


class MeanSquareNorm(nn.Module):
    """Norm that divides features by the root of their mean square."""

    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.gain * x_BLD * torch.rsqrt(x_BLD.square().mean(-1, keepdim=True) + self.eps)


class LearnedPositionAttention(nn.Module):
    """Causal attention that adds a learned vector of each position to its input.

    It needs the whole sequence, even if ranks of tensor parallelism share it between modules.
    """

    tensor_parallel = "whole"

    def __init__(self, *, dim: int, n_heads: int, max_sequence_length: int):
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"n_heads={n_heads}: expected a divisor of dim={dim}")
        self.n_heads = n_heads
        self.max_sequence_length = max_sequence_length
        self.positions = nn.Embedding(max_sequence_length, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def reset_parameters(self) -> None:
        """Give positions a smaller scale than nn.Embedding does."""
        nn.init.normal_(self.positions.weight, std=0.1)

    def forward(self, x_BLD: torch.Tensor, cache=None, places=None) -> torch.Tensor:
        x_BLD = x_BLD + self.positions(torch.arange(x_BLD.shape[1], device=x_BLD.device))
        q_BHLK, k_BHLK, v_BHLK = (
            self.qkv(x_BLD).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        y_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)
        return self.out(y_BHLK.transpose(1, 2).flatten(2))

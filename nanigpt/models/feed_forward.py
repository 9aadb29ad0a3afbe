"""Position-wise feed-forward network.

Shapes: B batch, L sequence, D dim.
"""

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt.models.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU: `w2(silu(w1(x)) * w3(x))` (Shazeer, 2020)."""

    multiplies_below = True

    tensor_parallel = {"": "gather", "w1": "column", "w3": "column", "w2": "row"}

    def __init__(self, *, w1: Linear, w2: Linear, w3: Linear):
        super().__init__()
        if not (w1.in_dim == w3.in_dim == w2.out_dim and w1.out_dim == w3.out_dim == w2.in_dim):
            sizes = ", ".join(
                f"{name} {w.in_dim} -> {w.out_dim}"
                for name, w in {"w1": w1, "w2": w2, "w3": w3}.items()
            )
            raise ValueError(f"{sizes}: expected w1 and w3 dim -> hidden, w2 hidden -> dim")
        self.w1 = w1
        self.w2 = w2
        self.w3 = w3

    @property
    def dim(self) -> int:
        return self.w1.in_dim

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x_BLD)) * self.w3(x_BLD))

"""Position-wise feed-forward network.

Shapes: B batch, L sequence, D dim.
"""

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt.models.linear import Linear
from nanigpt.models.sizes import misfits, size
from nanigpt.problems import refuse_all


class FeedForward(nn.Module):
    """SwiGLU: `w2(silu(w1(x)) * w3(x))` (Shazeer, 2020)."""

    multiplies_below = True

    tensor_parallel = {"": "gather", "w1": "column", "w3": "column", "w2": "row"}

    def __init__(self, *, w1: Linear, w2: Linear, w3: Linear):
        super().__init__()
        dim, hidden = size(w1, "in_dim"), size(w1, "out_dim")
        expected = {
            "w3.in_dim": (size(w3, "in_dim"), dim),
            "w3.out_dim": (size(w3, "out_dim"), hidden),
            "w2.in_dim": (size(w2, "in_dim"), hidden),
            "w2.out_dim": (size(w2, "out_dim"), dim),
        }
        refuse_all(misfits(expected, {"w1.in_dim": dim, "w1.out_dim": hidden}))
        self.w1 = w1
        self.w2 = w2
        self.w3 = w3

    @property
    def dim(self) -> int:
        return self.w1.in_dim

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x_BLD)) * self.w3(x_BLD))

"""Position-wise feed-forward networks.

Shapes: B batch, L sequence, D dim.
"""

import torch
from torch import nn

from nanigpt.models.activation import GELU, Activation, GatedActivation, SwiGLU
from nanigpt.models.linear import Linear


class FeedForward(nn.Module):
    """Gated network of three matrices: `w2(activation(w1(x), w3(x)))` (Shazeer, 2020).

    Args:
        activation: None is `SwiGLU`.
    """

    multiplies_below = True

    tensor_parallel = {"": "gather", "w1": "column", "w3": "column", "w2": "row"}

    def __init__(
        self, *, w1: Linear, w2: Linear, w3: Linear, activation: GatedActivation | None = None
    ):
        super().__init__()
        if not (w1.in_dim == w3.in_dim == w2.out_dim and w1.out_dim == w3.out_dim == w2.in_dim):
            sizes = _sizes(w1=w1, w2=w2, w3=w3)
            raise ValueError(f"{sizes}: expected w1 and w3 dim -> hidden, w2 hidden -> dim")
        self.w1 = w1
        self.w2 = w2
        self.w3 = w3
        self.activation = activation or SwiGLU()

    @property
    def dim(self) -> int:
        return self.w1.in_dim

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(self.activation(self.w1(x_BLD), self.w3(x_BLD)))

    def extra_repr(self) -> str:
        return repr(self.activation)


class MLP(nn.Module):
    """Network of two matrices: `w2(activation(w1(x)))` (Vaswani et al., 2017).

    Args:
        activation: None is `GELU`, without an approximation.
    """

    tensor_parallel = {"": "gather", "w1": "column", "w2": "row"}

    def __init__(self, *, w1: Linear, w2: Linear, activation: Activation | None = None):
        super().__init__()
        if not (w1.in_dim == w2.out_dim and w1.out_dim == w2.in_dim):
            sizes = _sizes(w1=w1, w2=w2)
            raise ValueError(f"{sizes}: expected w1 dim -> hidden, w2 hidden -> dim")
        self.w1 = w1
        self.w2 = w2
        self.activation = activation or GELU()

    @property
    def dim(self) -> int:
        return self.w1.in_dim

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(self.activation(self.w1(x_BLD)))

    def extra_repr(self) -> str:
        return repr(self.activation)


def _sizes(**projections: Linear) -> str:
    return ", ".join(f"{name} {w.in_dim} -> {w.out_dim}" for name, w in projections.items())

"""Position-wise feed-forward networks.

Shapes: B batch, L sequence, D dim.
"""

import torch
from torch import nn

from nanigpt.models.activation import GELU, Activation, GatedActivation, SwiGLU
from nanigpt.models.widths import misfits, size
from nanigpt.problems import refuse_all


class FeedForward(nn.Module):
    """Gated network of three matrices: `w2(activation(w1(x), w3(x)))` (Shazeer, 2020).

    Args:
        activation: Activation; None is `SwiGLU`.
    """

    multiplies_below = True

    tensor_parallel = {"": "gather", "w1": "column", "w3": "column", "w2": "row"}

    def __init__(
        self,
        *,
        w1: nn.Module,
        w2: nn.Module,
        w3: nn.Module,
        activation: GatedActivation | None = None,
    ):
        super().__init__()
        dim, hidden = size(w1, "in_dim"), size(w1, "out_dim")
        expected = {
            "w3.in_dim": (w3, dim),
            "w3.out_dim": (w3, hidden),
            "w2.in_dim": (w2, hidden),
            "w2.out_dim": (w2, dim),
        }
        refuse_all(misfits(expected, {"w1.in_dim": w1, "w1.out_dim": w1}))
        self.w1 = w1
        self.w2 = w2
        self.w3 = w3
        self.activation = activation or SwiGLU()

    @property
    def dim(self) -> int | None:
        """Return the number of input features, if `w1` declares it."""
        return size(self.w1, "in_dim")

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(self.activation(self.w1(x_BLD), self.w3(x_BLD)))

    def extra_repr(self) -> str:
        return repr(self.activation)


class MLP(nn.Module):
    """Network of two matrices: `w2(activation(w1(x)))` (Vaswani et al., 2017).

    Args:
        activation: Activation; None is `GELU`, without an approximation.
    """

    multiplies_below = True

    tensor_parallel = {"": "gather", "w1": "column", "w2": "row"}

    def __init__(self, *, w1: nn.Module, w2: nn.Module, activation: Activation | None = None):
        super().__init__()
        dim, hidden = size(w1, "in_dim"), size(w1, "out_dim")
        expected = {
            "w2.in_dim": (w2, hidden),
            "w2.out_dim": (w2, dim),
        }
        refuse_all(misfits(expected, {"w1.in_dim": w1, "w1.out_dim": w1}))
        self.w1 = w1
        self.w2 = w2
        self.activation = activation or GELU()

    @property
    def dim(self) -> int | None:
        """Return the number of input features, if `w1` declares it."""
        return size(self.w1, "in_dim")

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.w2(self.activation(self.w1(x_BLD)))

    def extra_repr(self) -> str:
        return repr(self.activation)

"""Linear projection.

Shapes: B batch, L sequence, D in_dim, E out_dim.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.init import Initializer

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Of x, weight and bias, as `torch.nn.functional.linear` is."""


class Linear(nn.Module):
    """`y = x W^T (+ b)` with W of shape `[out_dim, in_dim]`, in the dtype of x.

    Weights follow the activations' dtype: the master weight is float32 and is cast where it is
    used, so one process computes what FSDP's mixed precision computes on many.

    Args:
        initializer: of the weight.
        bias: initialiser of the bias, or None for no bias.
        float8: must be None; the tag is where float8 training will be chosen per layer.
    """

    def __init__(
        self,
        *,
        in_dim: Annotated[int, tags.Width],
        out_dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer, tags.Initializer],
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        float8: Annotated[str | None, tags.Float8] = None,
    ):
        super().__init__()
        if in_dim <= 0 or out_dim <= 0:
            raise ValueError(f"in_dim={in_dim}, out_dim={out_dim}: expected positive sizes")
        if float8 is not None:
            raise ValueError(
                f"float8={float8!r}: this version trains without float8; expected None"
            )
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.initializer = initializer
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, device="meta"))
        self.bias_initializer = bias
        self.bias = None if bias is None else nn.Parameter(torch.empty(out_dim, device="meta"))

    def initializers(self) -> dict[str, Initializer]:
        return {"weight": self.initializer, "bias": self.bias_initializer}

    def active_weights(self) -> int:
        """Weights that one token is multiplied with."""
        return self.in_dim * self.out_dim

    def forward(self, x_BLD: torch.Tensor, product: Product = F.linear) -> torch.Tensor:
        """
        Args:
            product: what is made of x, weight and bias: a loss needs not all outputs at once.
        """
        bias = None if self.bias is None else self.bias.to(x_BLD.dtype)
        return product(x_BLD, self.weight.to(x_BLD.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_dim} -> {self.out_dim}, bias={self.bias is not None}"

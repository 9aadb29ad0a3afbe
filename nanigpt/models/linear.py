"""Linear projection.

Shapes: B batch, L sequence, D in_dim, E out_dim.
"""

from typing import Annotated, get_args

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.float8 import Product, Recipe, check_recipe, unprepared
from nanigpt.models.init import Initializer
from nanigpt.problems import require_positive


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in the dtype of x."""
    return F.linear(x, weight.to(x.dtype), bias)


class Linear(nn.Module):
    """`y = x W^T (+ b)` with W of shape `[out_dim, in_dim]`, in the dtype of x.

    Weights follow the activations' dtype: the master weight is float32 and is cast where it is
    used, so one process computes what FSDP's mixed precision computes on many.

    Args:
        initializer: of the weight.
        bias: initialiser of the bias, or None for no bias.
        float8: computes the product, and those of the backward pass, in 8 bits; None computes it
            in the dtype of x. Sizes must be multiples of 16. `tensorwise` has one scale for each of
            input, weight and gradient; `rowwise` one for each row, which is a power of two;
            `rowwise_with_gw_hp` is that, with the weight's gradient in the dtype of x (all three:
            torchao's recipes). `mxfp8` has one for each 32 numbers (OCP Microscaling Formats,
            2023); sizes must be multiples of 32.

    Attributes:
        product: makes y of x, the weight and the bias; where `float8` is set,
            `nanigpt.precision.float8` puts one here.
    """

    def __init__(
        self,
        *,
        in_dim: Annotated[int, tags.Width],
        out_dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer, tags.Initializer],
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        float8: Annotated[Recipe | None, tags.Float8] = None,
    ):
        super().__init__()
        require_positive(in_dim=in_dim, out_dim=out_dim)
        check_recipe(float8, get_args(Recipe), in_dim=in_dim, out_dim=out_dim)
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.float8 = float8
        self.product: Product = linear if float8 is None else unprepared(float8)
        self.initializer = initializer
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, device="meta"))
        self.bias_initializer = bias
        self.bias = None if bias is None else nn.Parameter(torch.empty(out_dim, device="meta"))

    def initializers(self) -> dict[str, Initializer]:
        return {"weight": self.initializer, "bias": self.bias_initializer}

    def active_weights(self) -> int:
        """Weights that one token is multiplied with."""
        return self.in_dim * self.out_dim

    def forward(self, x_BLD: torch.Tensor, product: Product | None = None) -> torch.Tensor:
        """
        Args:
            product: what is made of x, the weight in its dtype and the bias, in place of the
                layer's own product: a loss needs not all outputs at once.
        """
        bias = None if self.bias is None else self.bias.to(x_BLD.dtype)
        if product is not None:
            return product(x_BLD, self.weight.to(x_BLD.dtype), bias)
        return self.product(x_BLD, self.weight, bias)

    def extra_repr(self) -> str:
        float8 = "" if self.float8 is None else f", float8={self.float8}"
        return f"{self.in_dim} -> {self.out_dim}, bias={self.bias is not None}{float8}"

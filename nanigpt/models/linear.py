"""Linear projection.

Shapes: B batch, L sequence, D in_dim, E out_dim.
"""

from typing import Annotated, get_args

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.float8_recipe import Product, Recipe, check_recipe, unprepared
from nanigpt.models.init import Initializer
from nanigpt.problems import require_positive


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute the product in the dtype of x."""
    return F.linear(x, weight.to(x.dtype), bias)


class Linear(nn.Module):
    """`y = x W^T (+ b)` with W of shape `[out_dim, in_dim]`, in the dtype of x.

    The master weight is float32 and is cast to the activations' dtype where it is used. So one
    process computes the same as FSDP's mixed precision on many.

    Args:
        in_dim: Features of x.
        out_dim: Features of y.
        initializer: Initializer of the weight.
        bias: Initializer of the bias, or None for no bias.
        float8: Recipe by which the product and those of the backward pass are computed in 8 bits.
            None computes them in the dtype of x. Sizes must be multiples of 16. `tensorwise` has
            one scale for each of input, weight and gradient. `rowwise` has one scale for each row,
            which is a power of two. `rowwise_with_gw_hp` is like `rowwise`, but computes the
            weight's gradient in the dtype of x. (All three are torchao's recipes.) `mxfp8` has one
            scale for each 32 numbers (OCP Microscaling Formats, 2023); its sizes must be multiples
            of 32.

    Attributes:
        product: Function that computes y from x, the weight and the bias. If `float8` is set,
            `nanigpt.precision.float8` replaces it.
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

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer, "bias": self.bias_initializer}

    def active_weights(self) -> int:
        """Return the number of weights that one token is multiplied with."""
        return self.in_dim * self.out_dim

    def forward(self, x_BLD: torch.Tensor, product: Product | None = None) -> torch.Tensor:
        """Return y_BLE.

        Args:
            x_BLD: Inputs.
            product: Function that replaces the layer's own product. It takes x, the weight in the
                dtype of x, and the bias. A loss uses it to compute the outputs part by part.
        """
        bias = None if self.bias is None else self.bias.to(x_BLD.dtype)
        if product is not None:
            return product(x_BLD, self.weight.to(x_BLD.dtype), bias)
        return self.product(x_BLD, self.weight, bias)

    def extra_repr(self) -> str:
        float8 = "" if self.float8 is None else f", float8={self.float8}"
        return f"{self.in_dim} -> {self.out_dim}, bias={self.bias is not None}{float8}"

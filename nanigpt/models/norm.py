"""Normalisation layers.

Shapes: D dim; any leading dims.
"""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.init import Initializer
from nanigpt.problems import Fix, refuse, require_not_negative, require_positive


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dim (Zhang and Sennrich, 2019).

    Args:
        initializer: Initializer of the weight, or None for no weight.
    """

    multiplies_below = True

    tensor_parallel = {"": "sequence"}

    def __init__(
        self,
        *,
        dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer | None, tags.GainInitializer],
        eps: float = 1e-5,
    ):
        super().__init__()
        require_positive(dim=dim)
        require_not_negative(eps=eps)
        self.dim = dim
        self.eps = eps
        self.initializer = initializer
        weight = None if initializer is None else nn.Parameter(torch.empty(dim, device="meta"))
        self.weight: nn.Parameter | None
        self.register_parameter("weight", weight)

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer}

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(x_D.dtype)
        return F.rms_norm(x_D, (self.dim,), weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class LayerNorm(nn.Module):
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dim (Ba et al., 2016).

    Args:
        initializer: Initializer of the weight, or None for no weight (and then no bias: OLMo,
            2024).
        bias: Initializer of the bias, or None for no bias.
    """

    multiplies_below = True

    tensor_parallel = {"": "sequence"}

    def __init__(
        self,
        *,
        dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer | None, tags.GainInitializer],
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        require_positive(dim=dim)
        require_not_negative(eps=eps)
        if initializer is None and bias is not None:
            refuse("bias", bias, "None without a weight", Fix(None, "bias", None))
        self.dim = dim
        self.eps = eps
        self.initializer = initializer
        self.bias_initializer = bias
        weight = None if initializer is None else nn.Parameter(torch.empty(dim, device="meta"))
        self.weight: nn.Parameter | None
        self.register_parameter("weight", weight)
        bias_D = None if bias is None else nn.Parameter(torch.empty(dim, device="meta"))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias_D)

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer, "bias": self.bias_initializer}

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(x_D.dtype)
        bias = None if self.bias is None else self.bias.to(x_D.dtype)
        return F.layer_norm(x_D, (self.dim,), weight, bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, bias={self.bias is not None}, eps={self.eps}"

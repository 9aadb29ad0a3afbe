"""Normalisation.

Shapes: D dim; any leading dims.
"""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.init import Initializer
from nanigpt.problems import require_not_negative, require_positive


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dim (Zhang and Sennrich, 2019).

    Args:
        initializer: of the weight, or None for no weight.
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
        self.register_parameter("weight", weight)

    def initializers(self) -> dict[str, Initializer]:
        return {"weight": self.initializer}

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(x_D.dtype)
        return F.rms_norm(x_D, (self.dim,), weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"

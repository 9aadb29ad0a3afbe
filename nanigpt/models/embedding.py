"""Token embedding, and output heads with their own weight or the embedding's.

Shapes: B batch, L sequence, D dim, V vocab_size.
"""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.float8_recipe import Product, Recipe
from nanigpt.models.init import Initializer
from nanigpt.models.linear import Linear
from nanigpt.models.soft_cap import check_soft_cap, soft_cap
from nanigpt.problems import Fix, refuse, require_positive


class Embedding(nn.Module):
    """Rows of a `[vocab_size, dim]` table, in `compute_dtype`, which is the activations' dtype.

    Args:
        vocab_size: Rows of the table.
        dim: Features of a row.
        initializer: Initializer of the table.
        compute_dtype: float32 or bfloat16.
    """

    # The gradient of a row is a sum over every position of its token. It has thousands of terms,
    # which bf16 cannot hold. So the table is looked up, and sharded tables are gathered, in
    # float32.
    gathered_in_float32 = True

    def __init__(
        self,
        *,
        vocab_size: Annotated[int, tags.VocabSize],
        dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer, tags.Initializer],
        compute_dtype: Annotated[torch.dtype, tags.ComputeDType] = torch.float32,
    ):
        super().__init__()
        require_positive(vocab_size=vocab_size, dim=dim)
        if compute_dtype not in (torch.float32, torch.bfloat16):
            expected = "float32 or bfloat16, because float16 would need loss scaling"
            refuse(
                "compute_dtype", compute_dtype, expected, Fix(None, "compute_dtype", torch.bfloat16)
            )
        self.vocab_size = vocab_size
        self.dim = dim
        self.compute_dtype = compute_dtype
        self.initializer = initializer
        self.weight = nn.Parameter(torch.empty(vocab_size, dim, device="meta"))

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer}

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return x_BLD."""
        return F.embedding(tokens_BL, self.weight).to(self.compute_dtype)

    def extra_repr(self) -> str:
        return f"{self.vocab_size} x {self.dim}, {self.compute_dtype}"


class Head(Linear):
    """Output head whose logits have a soft cap: `cap * tanh(logits / cap)` (Gemma 2, 2024).

    Without a cap a `Linear` serves as well.

    Args:
        soft_cap: Bound of the logits, in training and in sampling; None is no bound.
    """

    def __init__(
        self,
        *,
        in_dim: Annotated[int, tags.Width],
        out_dim: Annotated[int, tags.VocabSize],
        initializer: Annotated[Initializer, tags.Initializer],
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        float8: Annotated[Recipe | None, tags.Float8] = None,
        soft_cap: float | None = None,
    ):
        super().__init__(
            in_dim=in_dim, out_dim=out_dim, initializer=initializer, bias=bias, float8=float8
        )
        check_soft_cap("soft_cap", soft_cap)
        self.soft_cap = soft_cap

    def active_weights(self) -> int:
        """Return the weights that one token is multiplied with."""
        return super().active_weights()

    def forward(self, x_BLD: torch.Tensor, product: Product | None = None) -> torch.Tensor:
        """Return logits_BLV.

        Args:
            x_BLD: Outputs of the decoder's last norm.
            product: Function that replaces the matrix product, as in `Linear.forward`. A loss with
                its own product also caps the logits itself.
        """
        y = super().forward(x_BLD, product)
        return soft_cap(y, self.soft_cap) if self.soft_cap and product is None else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, soft_cap={self.soft_cap}"


class TiedHead(nn.Module):
    """Output head whose weight is the embedding's: one parameter under two names.

    Args:
        embedding: The decoder's embedding. In the DAG, both are the same node.
        soft_cap: Bound of the logits, as in `Head`.
    """

    def __init__(self, *, embedding: Embedding, soft_cap: float | None = None):
        super().__init__()
        check_soft_cap("soft_cap", soft_cap)
        self.soft_cap = soft_cap
        self.in_dim = embedding.dim
        self.out_dim = embedding.vocab_size
        self.weight = embedding.weight

    def initializers(self) -> dict[str, Initializer | None]:
        """Return none: the embedding, which comes first, initializes the parameter."""
        return {}

    def active_weights(self) -> int:
        """Return the number of weights that one token is multiplied with."""
        return self.in_dim * self.out_dim

    def forward(self, x_BLD: torch.Tensor, product: Product = F.linear) -> torch.Tensor:
        """Return logits_BLV.

        Args:
            x_BLD: Outputs of the decoder's last norm.
            product: Function that replaces the matrix product, as in `Linear.forward`.
        """
        y = product(x_BLD, self.weight.to(x_BLD.dtype), None)
        # A loss that brings its own product caps its logits by itself.
        return soft_cap(y, self.soft_cap) if self.soft_cap and product is F.linear else y

    def extra_repr(self) -> str:
        return f"{self.in_dim} -> {self.out_dim}, tied"

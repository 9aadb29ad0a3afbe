"""Multi-token prediction: further tokens are predicted one after the other, to train better.

(DeepSeek-V3 Technical Report, 2024, 2.2.) Embedding and head are the decoder's own; generation does
not use this module.

Shapes: B batch, L sequence, D dim, M = 2 D.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.embedding import Embedding
from nanigpt.models.linear import Linear
from nanigpt.models.visibility import Places
from nanigpt.models.widths import misfits, size
from nanigpt.problems import refuse, refuse_all, require_not_negative


class PredictionDepth(nn.Module):
    """Prediction of one further token: a block combines a position's state with the next token.

    Args:
        embedding_norm: Norm of the embedding of that token.
        hidden_norm: Norm of the state from the depth before, or from the decoder's last layer.
        projection: Projection of both, in this order, which is the order of the published weights
            (`eh_proj`; the report's equation 21 has the other one).
        block: A `TransformerBlock`, with any attention and feed-forward network.
        norm: Norm before the decoder's head.
    """

    multiplies_below = True

    tensor_parallel = {
        "embedding_norm": "own",
        "hidden_norm": "own",
        "projection": "sequence",
        "block": "own",
        "norm": "own",
    }

    def __init__(
        self,
        *,
        embedding_norm: nn.Module,
        hidden_norm: nn.Module,
        projection: Linear,
        block: nn.Module,
        norm: nn.Module,
    ):
        super().__init__()
        said = size(norm, "dim")  # a norm of another package may not declare it
        source = {"projection.out_dim": projection} if said is None else {"norm.dim": norm}
        dim = projection.out_dim if said is None else said
        expected = {
            "embedding_norm.dim": (embedding_norm, dim),
            "hidden_norm.dim": (hidden_norm, dim),
            "projection.in_dim": (projection, 2 * dim),
            "projection.out_dim": (projection, dim),
        }
        refuse_all(misfits(expected, source))
        self.embedding_norm = embedding_norm
        self.hidden_norm = hidden_norm
        self.projection = projection
        self.block = block
        self.norm = norm

    def forward(
        self, x_BLD: torch.Tensor, ahead_BLD: torch.Tensor, places: Places | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input of the next depth, and the input of the head.

        Args:
            x_BLD: First output of the depth before; or output of the decoder's last layer, before
                its norm.
            ahead_BLD: Embeddings of the tokens that are looked ahead to.
            places: Places of the positions, which are the decoder's.
        """
        both_BLM = torch.cat([self.embedding_norm(ahead_BLD), self.hidden_norm(x_BLD)], dim=-1)
        x_BLD = self.block(self.projection(both_BLM), None, places)
        return x_BLD, self.norm(x_BLD)


class MultiTokenPrediction(nn.Module):
    """Depths of multi-token prediction.

    At position i, depth k predicts the token i + k + 1 from the state at i and token i + k.

    Args:
        depths: Prediction depths; the first is number 1.
        loss_weight: Weight of the mean of the depths' losses, which is added to the loss of the
            next token; DeepSeek-V3 used 0.3 for 10 T tokens, then 0.1.
    """

    multiplies_below = True
    tensor_parallel: ClassVar[dict[str, str]] = {}  # each depth has its own plan

    unsplit_axes = {
        "cp": "the tokens ahead are on other ranks",
        "pp": "the embedding is on other ranks",
    }

    def __init__(
        self,
        *,
        depths: list[PredictionDepth],
        loss_weight: Annotated[float, tags.MultiTokenLossWeight] = 0.3,
    ):
        super().__init__()
        if not depths:
            refuse("depths", [], "at least one")
        require_not_negative(loss_weight=loss_weight)
        self.depths = nn.ModuleList(depths)
        self.loss_weight = loss_weight

    def forward(
        self,
        x_BLD: torch.Tensor,
        tokens_BL: torch.Tensor,
        embedding: Embedding,
        places: Sequence[Places | None] | None = None,
    ) -> list[torch.Tensor]:
        """Return the input of the head for each depth.

        The last k positions of depth k have no token to look ahead to. They get the first tokens
        instead. No earlier position sees the results, and no loss may use them. A mixture of
        experts counts these positions like all others.

        Args:
            x_BLD: Output of the decoder's last layer, before its norm.
            places: Places for each depth's block.
        """
        outs = []
        for k, depth in enumerate(self.depths, start=1):
            of = None if places is None else places[k - 1]
            x_BLD, out_BLD = depth(x_BLD, embedding(tokens_BL.roll(-k, dims=1)), of)
            outs.append(out_BLD)
        return outs

    def extra_repr(self) -> str:
        return f"loss_weight={self.loss_weight}"

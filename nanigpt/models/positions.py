"""Learned positions, one vector for each.

Shapes: B batch (or 1, for all rows), L sequence, D dim, M max_positions.
"""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.init import Initializer
from nanigpt.problems import require_positive


class LearnedPositions(nn.Module):
    """Table `[max_positions, dim]` whose row p is added to the token's embedding at position p.

    (Radford et al., 2018 and 2019: GPT and GPT-2, with a standard deviation of 0.02 and 0.01.)

    Attributes:
        max_sequence_length: Number of positions in the table.
    """

    # Gradients of a row add up over the batch, as for the token table.
    gathered_in_float32 = True
    multiplies_below = True
    tensor_parallel = {"": "sequence"}

    def __init__(
        self,
        *,
        max_positions: Annotated[int, tags.SequenceLength],
        dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer, tags.Initializer],
    ):
        super().__init__()
        require_positive(max_positions=max_positions, dim=dim)
        self.dim = dim
        self.max_sequence_length = max_positions
        self.initializer = initializer
        self.weight = nn.Parameter(torch.empty(max_positions, dim, device="meta"))

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer}

    def forward(
        self, x_BLD: torch.Tensor, positions_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return x_BLD with the vectors of its positions added.

        Args:
            positions_BL: Positions of the tokens, if they are not 0 to L.
        """
        if positions_BL is None:
            return x_BLD + self.weight[: x_BLD.shape[1]].to(x_BLD.dtype)
        rows_BLD = F.embedding(_beside(positions_BL, self.weight), self.weight)
        return x_BLD + rows_BLD.to(x_BLD.dtype)

    def extra_repr(self) -> str:
        return f"{self.max_sequence_length} x {self.dim}"


def _beside(positions_BL: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the positions as a DTensor, whole on all ranks, if the weight is a DTensor."""
    if not hasattr(weight, "placements"):
        return positions_BL
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(weight, DTensor)
    return DTensor.from_local(positions_BL, weight.device_mesh, [Replicate()], run_check=False)

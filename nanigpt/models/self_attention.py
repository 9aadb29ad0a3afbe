"""Define the interface of attention modules for blocks, generation and parallelism.

Shapes: B batch, L new positions, D dim.
"""

import abc

import torch
from torch import nn

from nanigpt.models.attention_core import AttentionCore
from nanigpt.models.attention_extras import AttentionSink
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.visibility import Places, Visibility


class SelfAttention(nn.Module, abc.ABC):
    """Base class of attention modules.

    Attributes:
        n_heads: Number of query heads.
        qk_head_dim: Features of a head's queries and keys.
        v_head_dim: Features of a head's values.
        rope: Rotary embedding that rotates queries and keys by their positions; None is a layer
            without positions.
        visibility: Rule for which keys a query sees.
        sink: Learned score per head that takes a share of the attention, or None.
        core: Function that attends from queries to keys.
    """

    n_heads: int
    qk_head_dim: int
    v_head_dim: int
    rope: nn.Module | None
    visibility: Visibility
    sink: AttentionSink | None
    core: AttentionCore

    @abc.abstractmethod
    def stream_dims(self) -> dict[str, int]:
        """Return the arguments that must be as wide as the residual stream, and their widths."""

    def heads(self) -> dict[str, int]:
        """Return the numbers of heads, which ranks divide among them."""
        return {"n_heads": self.n_heads}

    def score_flops(self, sequence_length: int) -> int:
        """Return training FLOPs per token of two products: queries with keys, weights with values.

        Pairs that causality, windows and chunks hide are not discounted.
        """
        return 6 * self.n_heads * (self.qk_head_dim + self.v_head_dim) * sequence_length

    @abc.abstractmethod
    def cache_elements(self) -> int:
        """Return the number of elements that a cache keeps for one position."""

    @abc.abstractmethod
    def forward(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        """Return out_BLD.

        Args:
            cache: Cache of past positions, which also determines the positions of x.
            places: Places of x, by default 0 to L of one document.
        """

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in vars(self.visibility).items() if v is not None)

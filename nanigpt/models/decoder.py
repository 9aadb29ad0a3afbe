"""Decoder-only transformer.

Shapes: B batch, L sequence, D dim, V vocab_size.
"""

from typing import Annotated, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanigpt import tags
from nanigpt.models.attention import Attention
from nanigpt.models.embedding import Embedding, TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.linear import Linear
from nanigpt.models.norm import RMSNorm

Recomputation = Literal["none", "full"]


class TransformerBlock(nn.Module):
    """Pre-norm residual block: attention, then feed-forward.

    Args:
        activation_checkpointing: `none` keeps every activation for the backward pass, `full` keeps
            the block's input and recomputes the rest (Chen et al., 2016).
    """

    def __init__(
        self,
        *,
        attention_norm: RMSNorm,
        attention: Attention,
        feed_forward_norm: RMSNorm,
        feed_forward: FeedForward,
        activation_checkpointing: Annotated[Recomputation, tags.ActivationCheckpointing] = "none",
    ):
        super().__init__()
        if activation_checkpointing not in get_args(Recomputation):
            raise ValueError(
                f"activation_checkpointing={activation_checkpointing!r}: "
                f"expected one of {', '.join(get_args(Recomputation))}"
            )
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x_BLD: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        if self.activation_checkpointing == "full" and torch.is_grad_enabled():
            return checkpoint(self._forward, x_BLD, cache, use_reentrant=False)
        return self._forward(x_BLD, cache)

    def _forward(self, x_BLD: torch.Tensor, cache: LayerCache | None) -> torch.Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cache)
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))


class Decoder(nn.Module):
    """Embedding, blocks, final norm, output head.

    Raises:
        ValueError: the parts do not fit together; the message names them all.
    """

    def __init__(
        self,
        *,
        embedding: Embedding,
        layers: list[TransformerBlock],
        norm: RMSNorm,
        head: Linear | TiedHead,
    ):
        super().__init__()
        if not layers:
            raise ValueError("layers=[]: expected at least one block")
        dim = embedding.dim
        expected = {"norm.dim": (norm.dim, dim), "head.in_dim": (head.in_dim, dim)}
        expected["head.out_dim"] = (head.out_dim, embedding.vocab_size)
        for i, block in enumerate(layers):
            expected |= {
                f"layers[{i}].attention_norm.dim": (block.attention_norm.dim, dim),
                f"layers[{i}].attention.wq.in_dim": (block.attention.wq.in_dim, dim),
                f"layers[{i}].attention.wo.out_dim": (block.attention.wo.out_dim, dim),
                f"layers[{i}].feed_forward_norm.dim": (block.feed_forward_norm.dim, dim),
                f"layers[{i}].feed_forward.w1.in_dim": (block.feed_forward.w1.in_dim, dim),
            }
        wrong = [
            f"{k}={got}, expected {want}" for k, (got, want) in expected.items() if got != want
        ]
        if isinstance(head, TiedHead) and head.weight is not embedding.weight:
            wrong.append("head is tied to another embedding than the decoder's")
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if wrong[5:] else "")
            raise ValueError(
                f"embedding.dim={dim}, embedding.vocab_size={embedding.vocab_size}: {shown}"
            )
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    @property
    def max_sequence_length(self) -> int:
        """Positions that every layer's RoPE table has."""
        return min(block.attention.rope.max_sequence_length for block in self.layers)

    def forward(
        self, tokens_BL: torch.Tensor, caches: list[LayerCache] | None = None
    ) -> torch.Tensor:
        """Returns logits_BLV in the compute dtype; `caches` hold what came before."""
        x_BLD = self.embedding(tokens_BL)
        for i, block in enumerate(self.layers):
            x_BLD = block(x_BLD, caches[i] if caches is not None else None)
        return self.head(self.norm(x_BLD))

    def new_caches(self, *, batch_size: int, capacity: int) -> list[LayerCache]:
        """Empty caches for `capacity` positions, one a layer."""
        return [
            LayerCache(
                batch_size=batch_size,
                capacity=capacity,
                n_kv_heads=block.attention.n_kv_heads,
                head_dim=block.attention.head_dim,
                dtype=self.embedding.compute_dtype,
                device=block.attention.rope.cos_sin_2MF.device,
            )
            for block in self.layers
        ]

    def shard_groups(self) -> list[list[nn.Module]]:
        """Modules whose parameters are gathered together, in the order of the forward pass.

        What is in no group belongs to the whole model: a tied weight is used first and last.
        """
        blocks = [[block] for block in self.layers]
        if isinstance(self.head, TiedHead):
            return blocks
        return [[self.embedding], *blocks, [self.norm, self.head]]

    def n_parameters(self) -> int:
        """Distinct parameters, a tied weight counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs per token: `6 N + 12 L d S`, causality not discounted.

        N counts the weights of matrix multiplications, with the head and without the embedding's
        look-up; the second term is attention's two products (Chowdhery et al., 2022, appendix B).
        """
        matmuls = [m for m in self.modules() if isinstance(m, (Linear, TiedHead))]
        weights = sum(m.in_dim * m.out_dim for m in matmuls)
        heads = sum(b.attention.n_heads * b.attention.head_dim for b in self.layers)
        return 6 * weights + 12 * heads * sequence_length

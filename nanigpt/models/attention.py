"""Causal self-attention with grouped queries.

Shapes: B batch, L new positions, S all positions, D dim, H query heads, G KV heads, K head_dim.
"""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.linear import Linear
from nanigpt.models.rope import RotaryEmbedding


class Attention(nn.Module):
    """Softmax attention in which `n_heads / n_kv_heads` query heads share a key and value head.

    Multi-head attention (Vaswani et al., 2017) where the two are equal, grouped-query attention
    (Ainslie et al., 2023) where not. Scores are scaled by `head_dim ** -0.5`.
    """

    def __init__(
        self,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: Annotated[int, tags.Width],
        wq: Linear,
        wk: Linear,
        wv: Linear,
        wo: Linear,
        rope: RotaryEmbedding,
    ):
        super().__init__()
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(
                f"n_heads={n_heads}, n_kv_heads={n_kv_heads}: "
                "expected positive numbers, the second a divisor of the first"
            )
        expected = {
            "wq.out_dim": (wq.out_dim, n_heads * head_dim),
            "wk.out_dim": (wk.out_dim, n_kv_heads * head_dim),
            "wv.out_dim": (wv.out_dim, n_kv_heads * head_dim),
            "wo.in_dim": (wo.in_dim, n_heads * head_dim),
            "wk.in_dim": (wk.in_dim, wq.in_dim),
            "wv.in_dim": (wv.in_dim, wq.in_dim),
            "rope.head_dim": (rope.head_dim, head_dim),
        }
        wrong = [
            f"{k}={got}, expected {want}" for k, (got, want) in expected.items() if got != want
        ]
        if wrong:
            raise ValueError(
                f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, head_dim={head_dim}: "
                + "; ".join(wrong)
            )
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = head_dim
        self.wq = wq
        self.wk = wk
        self.wv = wv
        self.wo = wo
        self.rope = rope

    def forward(self, x_BLD: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        start = cache.length if cache is not None else 0
        q_BLHK = self.rope(self.wq(x_BLD).unflatten(-1, (self.n_heads, self.head_dim)), start)
        k_BSGK = self.rope(self.wk(x_BLD).unflatten(-1, (self.n_kv_heads, self.head_dim)), start)
        v_BSGK = self.wv(x_BLD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if cache is not None:
            k_BSGK, v_BSGK = cache.append(k_BSGK, v_BSGK)
        out_BHLK = F.scaled_dot_product_attention(
            q_BLHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            attn_mask=_cached_mask(x_BLD, start),
            is_causal=start == 0,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return self.wo(out_BHLK.transpose(1, 2).flatten(-2))


def _cached_mask(x_BLD: torch.Tensor, start: int) -> torch.Tensor | None:
    """Which of the S = start + L positions each new one sees; None where `is_causal` says it."""
    length = x_BLD.shape[1]
    if start == 0 or length == 1:
        return None
    return torch.ones(length, start + length, dtype=torch.bool, device=x_BLD.device).tril(start)

"""Causal self-attention with grouped queries.

Shapes: B batch, L new positions, S all positions, D dim, H query heads, G KV heads, K head_dim.
"""

from typing import Annotated, Any

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.attention_core import AttentionCore, Eager, ScaledDotProduct
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.self_attention import SelfAttention
from nanigpt.models.soft_cap import check_soft_cap
from nanigpt.models.varlen_attention import VarLen
from nanigpt.models.visibility import Places, Visibility
from nanigpt.models.widths import declared_sizes, misfits, size
from nanigpt.problems import Fix, refuse, refuse_all, require_positive


class Attention(SelfAttention):
    """Softmax attention in which `n_heads / n_kv_heads` query heads share a key and value head.

    It is multi-head attention (Vaswani et al., 2017) if the two are equal, and grouped-query
    attention (Ainslie et al., 2023) if not. Scores are scaled by `head_dim ** -0.5`; heads together
    may be wider or narrower than the model.

    Args:
        rope: Rotary embedding that rotates queries and keys by their positions; None makes a layer
            without positions.
        q_norm: Norm of each query head, before RoPE (Henry et al., 2020), or None.
        k_norm: Norm of each key head, before RoPE, or None.
        window: Number of positions that a query sees, including its own; None is all.
        chunk: Number of positions in a chunk; a query sees no other chunk than its own.
        sink: Learned score per head that takes a share of the attention, or None.
        temperature: Scale of queries that depends on their positions, or None.
        score_soft_cap: Bound of scores, `cap * tanh(score / cap)` (Gemma 2, 2024), or None. The
            cores `FlexAttention` and `Eager` support it, fused kernels do not.
        core: Function that attends from queries to keys; None is `ScaledDotProduct`, or with a cap
            `Eager`.
    """

    multiplies_below = True

    tensor_parallel = {
        "": "gather",
        "wq": "column",
        "wk": "column",
        "wv": "column",
        "wo": "row",
        "q_norm": "each_head",
        "k_norm": "each_head",
        "sink": "heads",
    }

    def __init__(
        self,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: Annotated[int, tags.Width],
        wq: nn.Module,
        wk: nn.Module,
        wv: nn.Module,
        wo: nn.Module,
        rope: nn.Module | None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        window: Annotated[int | None, tags.Unit("tokens")] = None,
        chunk: Annotated[int | None, tags.Unit("tokens")] = None,
        sink: AttentionSink | None = None,
        temperature: AttentionTemperature | None = None,
        score_soft_cap: float | None = None,
        core: Annotated[AttentionCore | None, tags.AttentionCore] = None,
    ):
        super().__init__()
        require_positive(n_heads=n_heads, n_kv_heads=n_kv_heads)
        if n_heads % n_kv_heads:
            expected = f"a divisor of n_heads={n_heads}"
            refuse("n_kv_heads", n_kv_heads, expected, given=("n_heads",))
        dim, width = size(wq, "in_dim"), n_heads * head_dim
        widths = {
            "wq.out_dim": (wq, width),
            "wk.out_dim": (wk, n_kv_heads * head_dim),
            "wv.out_dim": (wv, n_kv_heads * head_dim),
            "wo.in_dim": (wo, width),
            "wk.in_dim": (wk, dim),
            "wv.in_dim": (wv, dim),
            "rope.head_dim": (rope, head_dim),
            "q_norm.dim": (q_norm, head_dim),
            "k_norm.dim": (k_norm, head_dim),
            "sink.n_heads": (sink, n_heads),
        }
        if sink is not None and isinstance(core, VarLen):
            expected = (
                "a core other than VarLen with a sink, because VarLen's kernel computes no "
                "gradient for a sink"
            )
            refuse("core", core, expected, Fix(None, "core", None), given=("sink",))
        check_soft_cap("score_soft_cap", score_soft_cap)
        if score_soft_cap is not None and not getattr(core or Eager, "caps_scores", False):
            expected = f"FlexAttention or Eager, which can cap scores at {score_soft_cap}"
            refuse("core", core, expected, Fix(None, "core", None))
        sizes = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        refuse_all(misfits(widths, sizes))
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = self.qk_head_dim = self.v_head_dim = head_dim
        self.wq = wq
        self.wk = wk
        self.wv = wv
        self.wo = wo
        self.rope: Any = rope
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.visibility = Visibility(window=window, chunk=chunk)
        self.score_factor: float = getattr(rope, "score_factor", 1.0)
        self.sink = sink
        self.temperature = temperature
        self.score_soft_cap = score_soft_cap
        self.core = core or self._default_core()

    def stream_dims(self) -> dict[str, int]:
        """Return the widths that must equal the residual stream's, if projections declare them."""
        return declared_sizes({"wq.in_dim": self.wq, "wo.out_dim": self.wo})

    def heads(self) -> dict[str, int]:
        return {"n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads}

    def cache_elements(self) -> int:
        """Return the number of elements in a cache for one position: its keys and values."""
        return 2 * self.n_kv_heads * self.head_dim

    def forward(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        # The number of heads is left open: a rank may have a part of them.
        q_BLHK = self.wq(x_BLD).unflatten(-1, (-1, self.head_dim))
        k_BSGK = self.wk(x_BLD).unflatten(-1, (-1, self.head_dim))
        v_BSGK = self.wv(x_BLD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None:
            q_BLHK = self.q_norm(q_BLHK)
        if self.k_norm is not None:
            k_BSGK = self.k_norm(k_BSGK)
        positions_BL = None if places is None else places.positions_BL
        if cache is not None:
            positions_BL = cache.positions(q_BLHK.shape[1], q_BLHK.device)
        if self.rope is not None:
            q_BLHK, k_BSGK = self.rope(q_BLHK, positions_BL), self.rope(k_BSGK, positions_BL)
            if self.score_factor != 1.0:
                q_BLHK = q_BLHK * self.score_factor
        if self.temperature is not None:
            q_BLHK = self.temperature(q_BLHK, positions_BL)
        core = self.core
        if cache is not None:
            k_BSGK, v_BSGK = cache.append(k_BSGK, v_BSGK)
            # A prompt is short, and the same on all ranks, so it needs no special core.
            core, places = self._default_core(), None
        sink_H = None if self.sink is None else self.sink()
        more = {} if self.score_soft_cap is None else {"soft_cap": self.score_soft_cap}
        out_BLHK = core(
            q_BLHK, k_BSGK, v_BSGK, places, visibility=self.visibility, sink_H=sink_H, **more
        )
        return self.wo(out_BLHK.flatten(-2))

    def _default_core(self) -> AttentionCore:
        return ScaledDotProduct() if self.score_soft_cap is None else Eager()

    def extra_repr(self) -> str:
        heads = f"{self.n_heads} / {self.n_kv_heads} heads of {self.head_dim}"
        told = [heads, super().extra_repr()]
        if self.temperature is not None:
            told.append(f"temperature={vars(self.temperature)}")
        if self.score_soft_cap is not None:
            told.append(f"score_soft_cap={self.score_soft_cap}")
        return ", ".join(filter(None, told))

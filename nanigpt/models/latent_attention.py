"""Multi-head latent attention: one small latent gives the keys and values of all heads.

DeepSeek-V2 (2024), section 2.1, also used by DeepSeek-V3.

Shapes: B batch, L new positions, S all positions, D dim, H heads, N nope_head_dim, P rope_head_dim,
K = N + P features of queries and keys, V v_head_dim, R kv_lora_rank; X several of these together.
"""

from typing import Annotated

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from nanigpt import tags
from nanigpt.models.attention_core import AttentionCore, ScaledDotProduct
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.linear import Linear
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.models.self_attention import SelfAttention
from nanigpt.models.visibility import Places, Visibility
from nanigpt.models.widths import misfits
from nanigpt.problems import Fix, refuse, refuse_all, require_positive


class LatentAttention(SelfAttention):
    """Softmax attention whose keys and values are projections of a latent of R features.

    P further features carry the positions. Each head's queries have their own; the keys of all
    heads share theirs. Scores are scaled by `(N + P) ** -0.5` and RoPE's `score_factor`. The cache
    for generation holds only the latent and the shared key of past positions.

    Args:
        n_heads: Number of heads.
        nope_head_dim: Features of a head's queries and keys that RoPE does not rotate. They come
            before the `rope.head_dim` features that it rotates.
        v_head_dim: Features of a head's values.
        wq: Projection to the queries of all heads, or None if queries have a latent, too.
        wq_a: Projection to the latent of queries, or None.
        q_norm: Norm of that latent, or None.
        wq_b: Projection from that latent to the queries of all heads, or None.
        wkv_a: Projection to the latent of keys and values, followed by the key that all heads
            share.
        kv_norm: Norm of that latent.
        wkv_b: Projection from that latent to keys and values: for each head N, then V features.
        wo: Projection of all heads' outputs.
        rope: Rotary embedding of the P features.
        window: Number of positions that a query sees, including its own; None is all.
        chunk: Number of positions in a chunk; a query sees no other chunk than its own.
        core: Function that attends from queries to keys; None is `ScaledDotProduct`.

    Raises:
        ValueError: The parts do not fit together.
    """

    multiplies_below = True
    rope: RotaryEmbedding

    tensor_parallel = {
        "": "gather",
        "wq": "column",
        "wq_a": "replicated",
        "q_norm": "replicated",
        "wq_b": "column",
        "wkv_a": "replicated",
        "kv_norm": "replicated",
        "to_heads": "shared",
        "wkv_b": "column",
        "wo": "row",
    }

    def __init__(
        self,
        *,
        n_heads: int,
        nope_head_dim: Annotated[int, tags.Width],
        v_head_dim: Annotated[int, tags.Width],
        wq: Linear | None = None,
        wq_a: Linear | None = None,
        q_norm: RMSNorm | None = None,
        wq_b: Linear | None = None,
        wkv_a: Linear,
        kv_norm: RMSNorm,
        wkv_b: Linear,
        wo: Linear,
        rope: RotaryEmbedding,
        window: Annotated[int | None, tags.Unit("tokens")] = None,
        chunk: Annotated[int | None, tags.Unit("tokens")] = None,
        core: Annotated[AttentionCore | None, tags.AttentionCore] = None,
    ):
        super().__init__()
        require_positive(n_heads=n_heads, nope_head_dim=nope_head_dim, v_head_dim=v_head_dim)
        queries = {"wq": wq, "wq_a": wq_a, "q_norm": q_norm, "wq_b": wq_b}
        given = [name for name, module in queries.items() if module is not None]
        if given not in (["wq"], ["wq_a", "q_norm", "wq_b"]):
            made = f"wq alone, or wq_a, q_norm and wq_b, not {', '.join(given) or 'nothing'}"
            refuse("", ..., f"queries to be made by {made}")
        if wkv_b.bias is not None:
            why = "None, because decoding multiplies by parts of the weight and adds no bias"
            refuse("wkv_b.bias", ..., why, Fix(None, "wkv_b.bias", None))
        self.n_heads = n_heads
        self.nope_head_dim = nope_head_dim
        self.rope_head_dim = rope.head_dim
        self.qk_head_dim = nope_head_dim + rope.head_dim
        self.v_head_dim = v_head_dim
        self.kv_lora_rank = wkv_b.in_dim
        self._qk_parts = [nope_head_dim, rope.head_dim]
        self._kv_parts = [nope_head_dim, v_head_dim]
        into, out_of, rank = wq or wq_a, wq or wq_b, self.kv_lora_rank
        assert into is not None and out_of is not None
        expected = {
            f"{given[-1]}.out_dim": (out_of, n_heads * self.qk_head_dim),
            "wkv_a.out_dim": (wkv_a, rank + rope.head_dim),
            "wkv_a.in_dim": (wkv_a, into.in_dim),
            "kv_norm.dim": (kv_norm, rank),
            "wkv_b.out_dim": (wkv_b, n_heads * (nope_head_dim + v_head_dim)),
            "wo.in_dim": (wo, n_heads * v_head_dim),
        }
        if q_norm is not None:
            expected["q_norm.dim"] = (q_norm, into.out_dim)
            expected["wq_b.in_dim"] = (out_of, into.out_dim)
        sizes = {"n_heads": n_heads, "nope_head_dim": nope_head_dim, "v_head_dim": v_head_dim}
        sizes |= {"rope.head_dim": rope.head_dim, "wkv_b.in_dim": rank}
        refuse_all(misfits(expected, sizes))
        self.wq = wq
        self.wq_a = wq_a
        self.q_norm = q_norm
        self.wq_b = wq_b
        self.wkv_a = wkv_a
        self.kv_norm = kv_norm
        self.wkv_b = wkv_b
        self.wo = wo
        self.rope = rope
        # Tensor parallelism attaches here, to hand each rank the data that its heads share.
        self.to_heads = nn.Identity()
        self.visibility = Visibility(window=window, chunk=chunk)
        self.sink = None
        self.core = core or ScaledDotProduct()

    def stream_dims(self) -> dict[str, int]:
        """Return the sizes that must equal the width of the residual stream."""
        return {"wkv_a.in_dim": self.wkv_a.in_dim, "wo.out_dim": self.wo.out_dim}

    def cache_elements(self) -> int:
        """Return the numbers in the cache of one position: the latent, and the shared key."""
        return self.kv_lora_rank + self.rope_head_dim

    def forward(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        """Return out_BLD.

        Args:
            x_BLD: Inputs.
            cache: Cache of past positions, when generating.
            places: Positions and documents of the inputs.
        """
        # The number of heads is left open, since a rank may have a part of them.
        positions_BL = None if places is None else places.positions_BL
        if cache is not None:
            positions_BL = cache.positions(x_BLD.shape[1], x_BLD.device)
        q_BLHK = self._queries(x_BLD, positions_BL)
        latent_BLR, key_BLP = self.wkv_a(x_BLD).split([self.kv_lora_rank, self.rope_head_dim], -1)
        latent_BLR = self.kv_norm(latent_BLR)
        key_BL1P = self.rope(self.to_heads(key_BLP).unsqueeze(2), positions_BL)
        core = self.core
        if cache is not None:
            latent_and_key_BLX = torch.cat([self.to_heads(latent_BLR), key_BL1P.squeeze(2)], -1)
            [latent_and_key_BSX] = cache.append(latent_and_key_BLX)
            if cache.length > x_BLD.shape[1]:  # there are earlier positions
                out_BLHV = self._attend_to_latents(q_BLHK, latent_and_key_BSX)
                return self.wo(out_BLHV.flatten(-2))
            # A prompt is short, and the same on all ranks, so it needs no special core.
            core, places = ScaledDotProduct(), None
        kv_BLHX = self.wkv_b(latent_BLR).unflatten(-1, (-1, sum(self._kv_parts)))
        k_BLHN, v_BLHV = kv_BLHX.split(self._kv_parts, -1)
        k_BLHK = torch.cat([k_BLHN, key_BL1P.expand(-1, -1, k_BLHN.shape[2], -1)], -1)
        out_BLHV = core(q_BLHK, k_BLHK, v_BLHV, places, visibility=self.visibility)
        return self.wo(out_BLHV.flatten(-2))

    def _queries(self, x_BLD: torch.Tensor, positions_BL: torch.Tensor | None) -> torch.Tensor:
        """Return q_BLHK, rotated and scaled."""
        if self.wq is not None:
            q_BLX = self.wq(x_BLD)
        else:
            assert self.wq_a is not None and self.q_norm is not None and self.wq_b is not None
            q_BLX = self.wq_b(self.q_norm(self.wq_a(x_BLD)))
        q_BLHN, q_BLHP = q_BLX.unflatten(-1, (-1, self.qk_head_dim)).split(self._qk_parts, -1)
        q_BLHK = torch.cat([q_BLHN, self.rope(q_BLHP, positions_BL)], -1)
        return q_BLHK * self.rope.score_factor if self.rope.score_factor != 1.0 else q_BLHK

    def _attend_to_latents(
        self, q_BLHK: torch.Tensor, latent_and_key_BSX: torch.Tensor
    ) -> torch.Tensor:
        """Attend without computing any head's keys and values, and return out_BLHV.

        A key is `W c` for a latent c, and `q . W c = W^T q . c`. Likewise a sum of values follows
        from the sum of their latents. So all heads attend to one key, which is the latent and the
        rotated features, and whose value is the latent. Each pair of positions costs more than with
        heads of K and V features, but computing all past keys and values would cost even more.
        """
        weight: torch.Tensor = self.wkv_b.weight
        if isinstance(weight, DTensor):  # this rank has a part of the heads
            weight = weight.to_local()
        if hasattr(weight, "to_original_precision"):  # gathered in float8
            weight = weight.to_original_precision()
        weight_HXR = weight.to(q_BLHK.dtype).unflatten(0, (-1, sum(self._kv_parts)))
        k_HNR, v_HVR = weight_HXR.split(self._kv_parts, 1)
        q_BLHN, q_BLHP = q_BLHK.split(self._qk_parts, -1)
        q_BLHX = torch.cat([torch.einsum("blhn,hnr->blhr", q_BLHN, k_HNR), q_BLHP], -1)
        # The core scales by the size of the last dim, which is not that of a head here.
        q_BLHX = q_BLHX * (q_BLHX.shape[-1] / self.qk_head_dim) ** 0.5
        k_BS1X = latent_and_key_BSX.unsqueeze(2)
        v_BS1R = k_BS1X[..., : self.kv_lora_rank]
        out_BLHR = ScaledDotProduct()(q_BLHX, k_BS1X, v_BS1R, visibility=self.visibility)
        return torch.einsum("blhr,hvr->blhv", out_BLHR, v_HVR)

    def extra_repr(self) -> str:
        sizes = f"{self.n_heads} heads of {self.qk_head_dim} and {self.v_head_dim}"
        return ", ".join(filter(None, [sizes, super().extra_repr()]))

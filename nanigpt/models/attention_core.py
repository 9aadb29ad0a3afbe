"""Attention itself: from queries, keys and values to outputs, in exchangeable ways.

Shapes: B batch, L queries, S keys, H query heads, G KV heads, K head_dim.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch.nn import functional as F


class Places(NamedTuple):
    """Where tokens are: their positions in the sequence, and numbers of their documents."""

    positions_BL: torch.Tensor
    documents_BL: torch.Tensor | None = None


@runtime_checkable
class AttentionCore(Protocol):
    """Attends to what is not later, and of the same document; scores scale with 1 / sqrt(K).

    Without places, L queries are the last of S positions of one document.
    """

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
    ) -> torch.Tensor:
        """Returns out_BLHK; `keys` are by default where the queries are."""
        ...


class ScaledDotProduct:
    """PyTorch's fused kernels; with places they are given a mask of all pairs."""

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
    ) -> torch.Tensor:
        mask, is_causal = None, False
        length, size = q_BLHK.shape[1], k_BSGK.shape[1]
        if queries is not None:
            mask = _visible(queries, keys or queries).unsqueeze(1)  # [B, 1, L, S]
        elif length == size:
            is_causal = True
        elif length > 1 and q_BLHK.device.type == "cuda":
            from torch.nn.attention.bias import causal_lower_right  # imports dynamo

            mask = causal_lower_right(length, size)  # tells the kernel, and holds no mask
        elif length > 1:
            ones_LS = torch.ones((length, size), dtype=torch.bool, device=q_BLHK.device)
            mask = ones_LS.tril(size - length)
        grouped = q_BLHK.shape[2] != k_BSGK.shape[2]
        if grouped and mask is not None and q_BLHK.device.type == "cuda":
            # With a mask, the kernels that do not hold all scores know no grouped queries.
            groups = q_BLHK.shape[2] // k_BSGK.shape[2]
            k_BSGK, v_BSGK = (x.repeat_interleave(groups, 2) for x in (k_BSGK, v_BSGK))
            grouped = False
        out_BHLK = F.scaled_dot_product_attention(
            q_BLHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            attn_mask=mask,
            is_causal=is_causal,
            enable_gqa=grouped,
        )
        return out_BHLK.transpose(1, 2)


class FlexAttention:
    """FlexAttention (Dong et al., 2024): blocks of pairs that nobody sees are never computed.

    On a CPU it has no backward pass (torch 2.13).
    """

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
    ) -> torch.Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        (batch, length), size = q_BLHK.shape[:2], k_BSGK.shape[1]
        start = size - length

        def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor):
            if queries is None:
                return j <= i + start
            of = keys or queries
            seen = of.positions_BL[b, j] <= queries.positions_BL[b, i]
            if queries.documents_BL is None:
                return seen
            return seen & (of.documents_BL[b, j] == queries.documents_BL[b, i])

        n = None if queries is None else batch
        block_mask = create_block_mask(visible, n, None, length, size, device=q_BLHK.device)
        attend = flex_attention
        if q_BLHK.device.type == "cuda" and not torch.compiler.is_compiling():
            attend = _compiled(flex_attention)  # uncompiled, all pairs of scores are held
        out_BHLK = attend(
            q_BLHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            block_mask=block_mask,
            enable_gqa=q_BLHK.shape[2] != k_BSGK.shape[2],
        )
        return out_BHLK.transpose(1, 2)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


def _visible(queries: Places, keys: Places) -> torch.Tensor:
    """mask_BLS: what each query sees."""
    mask_BLS = queries.positions_BL.unsqueeze(2) >= keys.positions_BL.unsqueeze(1)
    if queries.documents_BL is not None:
        same_BLS = queries.documents_BL.unsqueeze(2) == keys.documents_BL.unsqueeze(1)
        mask_BLS = mask_BLS & same_BLS
    return mask_BLS

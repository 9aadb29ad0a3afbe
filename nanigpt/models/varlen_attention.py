"""Attention of packed sequences, each computed separately and without a mask.

Shapes: B batch, L queries, H query heads, G KV heads, K head_dim, V head_dim of values; T = B L
tokens, N sequences, W a width that the kernel accepts.
"""

import inspect
from typing import Any

import torch
from torch.nn import functional as F

from nanigpt.models.visibility import CAUSAL, Places, Visibility


class VarLen:
    """FlashAttention (Dao, 2023) over concatenated sequences.

    A sequence ends where a document, a chunk or a row ends. Positions in a row ascend by one, and
    each document of a row is contiguous. The kernel needs a CUDA device, computes in bfloat16 or
    float16, and returns no gradient of its log-sum-exp, so it does not support sinks.
    """

    dtypes = (torch.bfloat16, torch.float16)

    def __init__(self) -> None:
        from torch.nn.attention.varlen import varlen_attn

        # Torch 2.11 takes fewer heads of keys without this argument.
        self._has_enable_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def prepare(
        self,
        places: Places | None,
        *,
        visibility: Visibility,
        batch: int,
        length: int,
        device: torch.device,
    ) -> Places:
        """Return the places with the cumulative lengths of sequences.

        If there are documents, the host waits for their number.
        """
        if places is None or places.positions_BL is None:
            ends_N = _ends_of_rows(visibility, batch, length, device)
        else:
            ends_N = _ends(places, visibility)
        return (places or Places(None))._replace(prepared=ends_N)

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BLGK: torch.Tensor,
        v_BLGV: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return out_BLHV.

        Raises:
            ValueError: Keys have other places than queries, or there are sinks.
        """
        from torch.nn.attention.varlen import varlen_attn

        batch, length, n_heads, head_dim = q_BLHK.shape
        if keys is not None or k_BLGK.shape[1] != length:
            raise ValueError(
                f"VarLen: {length} queries, {k_BLGK.shape[1]} keys: expected queries and keys of "
                "the same positions"
            )
        if sink_H is not None:
            raise ValueError("VarLen: expected no sink: its kernel computes no gradient for a sink")
        if queries is None or queries.prepared is None:
            queries = self.prepare(
                queries, visibility=visibility, batch=batch, length=length, device=q_BLHK.device
            )
        value_dim = v_BLGV.shape[-1]
        width = -(-max(head_dim, value_dim) // 8) * 8  # the same for all, and a multiple of 8
        q_THW, k_TGW, v_TGW = (_padded(x.flatten(0, 1), width) for x in (q_BLHK, k_BLGK, v_BLGV))
        window, chunk = visibility.window, visibility.chunk
        longest = min(length, chunk or length)  # the kernel accepts an upper bound
        grouped: dict[str, Any] = {}
        if self._has_enable_gqa:
            grouped["enable_gqa"] = n_heads != k_BLGK.shape[2]
        out_THW = varlen_attn(
            q_THW,
            k_TGW,
            v_TGW,
            queries.prepared,
            queries.prepared,
            longest,
            longest,
            scale=head_dim**-0.5,
            window_size=(-1 if window is None else window - 1, 0),
            **grouped,
        )
        assert isinstance(out_THW, torch.Tensor)  # the call requests no other output
        return out_THW[..., :value_dim].unflatten(0, (batch, length))


def _ends_of_rows(
    visibility: Visibility, batch: int, length: int, device: torch.device
) -> torch.Tensor:
    """Return 0, then the ends of rows and of their chunks, as int32."""
    begin_BN = length * torch.arange(batch, device=device).unsqueeze(1) + torch.arange(
        0, length, visibility.chunk or length, device=device
    )
    return F.pad(begin_BN.flatten(), (0, 1), value=batch * length).int()


def _ends(places: Places, visibility: Visibility) -> torch.Tensor:
    """Return 0, then the ends of sequences, as int32.

    Empty sequences at the end make their number a power of two, so that compiled blocks see few
    shapes. A number as large as that of tokens would need no count on the host, but the kernel's
    backward pass holds 128 rows of float32 for each sequence. So the host waits for the number.
    """
    positions_BL = places.positions_BL
    assert positions_BL is not None
    parts = [places.documents_BL]
    if visibility.chunk is not None:
        parts.append(positions_BL // visibility.chunk)
    begins_BL = torch.zeros_like(positions_BL, dtype=torch.bool)
    begins_BL[:, 0] = True
    for part_BL in parts:
        if part_BL is not None:
            begins_BL[:, 1:] |= part_BL.diff(dim=1) != 0
    begin_N = begins_BL.flatten().nonzero().squeeze(1)
    n = len(begin_N)
    empty = (1 << (n - 1).bit_length()) - n
    return F.pad(begin_N, (0, empty + 1), value=begins_BL.numel()).int()


def _padded(x_THK: torch.Tensor, width: int) -> torch.Tensor:
    more = width - x_THK.shape[-1]
    return F.pad(x_THK, (0, more)) if more else x_THK

"""Compute attention from queries, keys and values to outputs, in exchangeable ways.

Shapes: B batch, L queries, S keys, H query heads, G KV heads, N = H / G, K head_dim. Values may
have another size than keys.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch.nn import functional as F

from nanigpt.models.soft_cap import soft_cap as capped
from nanigpt.models.visibility import CAUSAL, Places, Visibility, last_of
from nanigpt.problems import refuse

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@runtime_checkable
class AttentionCore(Protocol):
    """Function that attends to the keys that `visibility` lets a query see.

    Scores scale with 1 / sqrt(K). Without places, L queries are the last of S positions of one
    document.
    """

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        /,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return out_BLHK.

        Args:
            keys: Places of the keys; by default the places of the queries.
            sink_H: Score of each head that stands beside the keys' scores in the softmax, and has
                no value.
        """
        ...


@runtime_checkable
class PreparingCore(AttentionCore, Protocol):
    """Core that prepares data from places and visibility. Layers of equal visibility share them."""

    def prepare(
        self,
        places: Places | None,
        *,
        visibility: Visibility,
        batch: int,
        length: int,
        device: torch.device,
    ) -> Places:
        """Return places with the core's data in `prepared`, computed once for a forward pass.

        Args:
            places: Places of B rows of L queries, which are also the keys; None is 0 to L.
        """
        ...


class Eager:
    """Attention that computes all scores, in float32. Tests compare the other cores with it.

    Attributes:
        caps_scores: Whether the core takes the argument `soft_cap`, a bound of scores.
    """

    caps_scores = True

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        n_groups, head_dim = k_BSGK.shape[2:]
        q_BLGNK = q_BLHK.float().unflatten(2, (n_groups, -1))
        score_BGNLS = torch.einsum("blgnk,bsgk->bgnls", q_BLGNK, k_BSGK.float()) / head_dim**0.5
        if soft_cap is not None:
            score_BGNLS = capped(score_BGNLS, soft_cap)
        mask_BLS = _mask(q_BLHK, k_BSGK, queries, keys, visibility)
        score_BGNLS = score_BGNLS.masked_fill(~mask_BLS[:, None, None], -torch.inf)
        if sink_H is not None:
            sink_GN11 = sink_H.float().unflatten(0, (n_groups, -1))[..., None, None]
            sink_BGNL1 = sink_GN11.expand(*score_BGNLS.shape[:-1], 1)
            score_BGNLS = torch.cat([score_BGNLS, sink_BGNL1], dim=-1)
        weight_BGNLS = score_BGNLS.softmax(-1)[..., : k_BSGK.shape[1]]
        out_BLGNK = torch.einsum("bgnls,bsgk->blgnk", weight_BGNLS, v_BSGK.float())
        return out_BLGNK.flatten(2, 3).to(q_BLHK.dtype)


Kernel = Literal["cudnn", "flash", "efficient", "math"]


class ScaledDotProduct:
    """PyTorch's fused kernels. If visibility is not plainly causal, they get a mask of all pairs.

    Args:
        kernels: Kernels to choose from; the first that supports the inputs is used. None allows
            all, in the best order for the device: PyTorch's own order, which begins with `flash`,
            but on Hopper GPUs `cudnn` first, except for single queries. On a CPU the order is
            fixed.
    """

    def __init__(self, *, kernels: Sequence[Kernel] | None = None):
        if kernels is not None:
            unknown = [kernel for kernel in kernels if kernel not in get_args(Kernel)]
            if unknown or not kernels:
                refuse("kernels", list(kernels), f"some of {', '.join(get_args(Kernel))}")
        self.kernels = None if kernels is None else tuple(kernels)

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        length, head_dim, size = q_BLHK.shape[1], q_BLHK.shape[3], k_BSGK.shape[1]
        value_dim, cuda = v_BSGK.shape[3], q_BLHK.device.type == "cuda"
        plain = queries is None and sink_H is None and not visibility.limits(size)
        mask: Any = None
        is_causal = False
        if plain and length == size:
            is_causal = True
        elif plain and length > 1 and cuda:
            from torch.nn.attention.bias import causal_lower_right  # imports dynamo

            mask = causal_lower_right(length, size)  # describes the mask, and holds none
        elif not (plain and length == 1):  # a single query, the last, sees all keys
            mask = _mask(q_BLHK, k_BSGK, queries, keys, visibility).unsqueeze(1)  # [B, 1, L, S]
        grouped = q_BLHK.shape[2] != k_BSGK.shape[2]
        if grouped and mask is not None and cuda:
            # With a mask, kernels that do not hold all scores do not support grouped queries.
            groups = q_BLHK.shape[2] // k_BSGK.shape[2]
            k_BSGK, v_BSGK = (x.repeat_interleave(groups, 2) for x in (k_BSGK, v_BSGK))
            grouped = False
        if sink_H is not None:
            q_BLHK, k_BSGK, v_BSGK = _with_sink(q_BLHK, k_BSGK, v_BSGK, sink_H)
            mask = F.pad(mask, (0, 1), value=True)
        with self._kernels(q_BLHK.device, length):
            out_BHLK = F.scaled_dot_product_attention(
                q_BLHK.transpose(1, 2),
                k_BSGK.transpose(1, 2),
                v_BSGK.transpose(1, 2),
                attn_mask=mask,
                is_causal=is_causal,
                scale=head_dim**-0.5,
                enable_gqa=grouped,
            )
        return out_BHLK.transpose(1, 2)[..., :value_dim]

    def _kernels(self, device: torch.device, length: int) -> Any:
        # cuDNN prepares anew for each new number of keys, which changes with each sampled token.
        on_hopper = length > 1 and is_hopper(device)
        kernels = self.kernels or (_ON_HOPPER if on_hopper else None)
        if kernels is None:
            return contextlib.nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backends = {
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH,
        }
        return sdpa_kernel([backends[kernel] for kernel in kernels], set_priority=True)


# On Hopper, cuDNN's kernels are reported 1.7 to 2.3 times as fast as `flash` in training, and
# slower on the generations before and after (huggingface/transformers pull request 48163, 2026).
_ON_HOPPER: tuple[Kernel, ...] = ("cudnn", "flash", "efficient", "math")


def is_hopper(device: torch.device) -> bool:
    """Return whether the device is a GPU of compute capability 9 (H100, H200, GH200)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_properties(device).major == 9


class FlexAttention:
    """FlexAttention (Dong et al., 2024). It never computes blocks of pairs that no query sees.

    On a CPU it has no backward pass (torch 2.13).

    Attributes:
        caps_scores: Whether the core takes the argument `soft_cap`, a bound of scores.
    """

    caps_scores = True

    def prepare(
        self,
        places: Places | None,
        *,
        visibility: Visibility,
        batch: int,
        length: int,
        device: torch.device,
    ) -> Places:
        """Return the places with their block mask."""
        mask = _block_mask(
            places, None, visibility, batch=batch, length=length, size=length, device=device
        )
        return (places or Places(None))._replace(prepared=mask)

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BSGK: torch.Tensor,
        v_BSGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        block_mask = None if queries is None else queries.prepared
        if block_mask is None:
            (batch, length), size = q_BLHK.shape[:2], k_BSGK.shape[1]
            block_mask = _block_mask(
                queries,
                keys,
                visibility,
                batch=batch,
                length=length,
                size=size,
                device=q_BLHK.device,
            )
        attend = flex_attention
        if q_BLHK.device.type == "cuda" and not torch.compiler.is_compiling():
            # Uncompiled, it holds all pairs of scores; as one operator, recomputation can keep its
            # result.
            attend = _compiled(flex_attention, whole=True)
        out_BHLK, aux = attend(
            q_BLHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            score_mod=None if soft_cap is None else _capping(soft_cap),
            block_mask=block_mask,
            enable_gqa=q_BLHK.shape[2] != k_BSGK.shape[2],
            return_aux=AuxRequest(lse=sink_H is not None),
        )
        if sink_H is not None:
            # Scale by the share of the softmax's sum that is not the sink's.
            lse_BHL: Any = aux.lse
            kept_BHL = torch.sigmoid(lse_BHL - sink_H.float()[:, None])
            out_BHLK = (out_BHLK * kept_BHL.unsqueeze(-1)).to(out_BHLK.dtype)
        return out_BHLK.transpose(1, 2)


@functools.cache  # one compilation serves all layers
def _capping(cap: float) -> Callable:
    def cap_score(score: torch.Tensor, *where: torch.Tensor) -> torch.Tensor:
        return capped(score, cap)

    return cap_score


@functools.cache
def _compiled(function: Callable, *, whole: bool = False) -> Callable:
    """Compile a function; `whole` makes it one operator for code that inspects operators."""
    return torch.compile(
        function, options={"wrap_inductor_compiled_regions": True} if whole else None
    )


def _block_mask(
    queries: Places | None,
    keys: Places | None,
    visibility: Visibility,
    *,
    batch: int,
    length: int,
    size: int,
    device: torch.device,
) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    start = size - length

    def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        if queries is None:
            return visibility.sees(i + start, j)
        of: Any = keys or queries
        positions_BL: Any = queries.positions_BL
        documents: list[torch.Tensor] = []
        if queries.documents_BL is not None:
            documents = [queries.documents_BL[b, i], of.documents_BL[b, j]]
        return visibility.sees(positions_BL[b, i], of.positions_BL[b, j], *documents)

    create = create_block_mask
    if device.type == "cuda" and not torch.compiler.is_compiling():
        create = _compiled(create_block_mask)  # uncompiled, it holds a mask of all pairs
    return create(visible, None if queries is None else batch, None, length, size, device=device)


def _mask(
    q_BLHK: torch.Tensor,
    k_BSGK: torch.Tensor,
    queries: Places | None,
    keys: Places | None,
    visibility: Visibility,
) -> torch.Tensor:
    if queries is None:
        queries, keys = last_of(q_BLHK.shape[1], k_BSGK.shape[1], q_BLHK.device)
    return visibility.mask(queries, keys or queries)


def _with_sink(
    q_BLHK: torch.Tensor, k_BSGK: torch.Tensor, v_BSGK: torch.Tensor, sink_H: torch.Tensor
) -> list[torch.Tensor]:
    """Add the sink as one more key without a value, whose score is one more feature of queries.

    The kernels give no gradient of their sums; with this key they compute plain attention.
    """
    head_dim = q_BLHK.shape[-1]
    more = 8 - head_dim % 8  # kernels want head dims that are multiples of 8
    q_BLHK, k_BSGK, v_BSGK = (F.pad(x, (0, more)) for x in (q_BLHK, k_BSGK, v_BSGK))
    feature_K = torch.zeros(head_dim + more, dtype=q_BLHK.dtype, device=q_BLHK.device)
    feature_K[head_dim] = 1.0
    score_H = sink_H.to(q_BLHK.dtype) * head_dim**0.5  # the kernel scales it back
    key_BSGK = feature_K.expand(k_BSGK.shape[0], 1, *k_BSGK.shape[2:])
    return [
        q_BLHK + score_H[:, None] * feature_K,
        torch.cat([k_BSGK, key_BSGK], dim=1),
        F.pad(v_BSGK, (0, 0, 0, 0, 0, 1)),
    ]

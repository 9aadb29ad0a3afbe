"""Context parallelism: each rank has a part of every sequence.

A sequence has 2n chunks for n ranks. Rank r has the chunks r and 2n - 1 - r, an early and a late
one, so that all ranks have the same share of a causal mask (as in the training of Llama 3; The
Llama 3 Herd of Models, 2024, 3.3.2).

Shapes: B batch, L a rank's positions, S all positions, H query heads, G KV heads, K head_dim.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt.models.attention_core import AttentionCore, ScaledDotProduct
from nanigpt.models.varlen_attention import VarLen
from nanigpt.models.visibility import CAUSAL, Places, Visibility
from nanigpt.parallel.async_results import wait_for
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.plan import Plan
from nanigpt.parallel.tensor import head_counts, indivisible
from nanigpt.parallel.tensor_plan import gaps, parts
from nanigpt.problems import Fix, Problem, require_choice

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Method = Literal["all_gather", "ring", "ulysses"]


class ContextParallel:
    """A policy that splits sequences over the mesh axis `cp`.

    Args:
        method: How queries reach the keys of other ranks. `all_gather` gathers keys and values,
            which grouped-query attention keeps small. `ring` passes keys and values from rank to
            rank, so that no rank holds all of them. It does not support document masks, windows,
            chunks, sinks or torch.compile. `ulysses` exchanges tensors so that each rank gets all
            positions of some heads. The number of heads must be large enough (Jacobs et al.,
            2023).
    """

    axes = ("cp", "tp")
    may_change_on_resume = True

    def __init__(self, *, method: Method = "all_gather"):
        require_choice(get_args(Method), method=method)
        self.method = method

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why the ranks of `cp` cannot share sequences."""
        n, tp = plan.sizes["cp"], plan.sizes["tp"]
        if n == 1:
            return []
        fix = Fix(plan.mesh, "cp", 1)
        found = [
            Problem("", ..., f"a tensor_parallel plan other than 'whole' for cp={n}", fix, module)
            for module in _of_whole_sequences(model)
        ]
        length = plan.sequence_length
        if length is None:
            return [Problem("cp", n, "1 for samples without a sequence", fix, plan.mesh)]
        attentions = [module for module in model.modules() if hasattr(module, "core")]
        for attention in attentions:
            if isinstance(attention.core, VarLen):
                expected = f"a core other than VarLen, which does not support cp={n}"
                found.append(
                    Problem("core", ..., expected, Fix(attention, "core", None), attention)
                )
            if self.method == "ring":
                found += _problems_of_ring(attention, plan)
        if length % (2 * n * tp):
            expected = f"a multiple of 2 x cp={n} x tp={tp} = {2 * n * tp}"
            found.append(Problem("sequence_length", length, expected, component=plan.data))
        if self.method == "ulysses":
            divisor = f"cp={n} x tp={tp} = {n * tp}, or method='all_gather'"
            found += indivisible(head_counts(model), n * tp, divisor)
        elif self.method == "ring" and plan.mask_documents:
            found.append(self._instead_of_ring("another method for data with mask_documents=True"))
        if self.method == "ring" and plan.compiled:
            found.append(self._instead_of_ring("another method for a compiled model"))
        return found

    def _instead_of_ring(self, expected: str) -> Problem:
        return Problem("method", "ring", expected, Fix(None, "method", "all_gather"), self)

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Replace the `core` of every attention module."""
        if layout.sizes["cp"] == 1:
            return
        kinds: dict[str, Any] = {"all_gather": _Gathered, "ring": _Ring, "ulysses": _Exchanged}
        for module in model.modules():
            if hasattr(module, "core"):
                core: Any = module.core
                module.core = kinds[self.method](core, layout.context)

    def positions(self, length: int, layout: Layout) -> torch.Tensor:
        """Return the positions that this rank has in sequences of `length`."""
        n, r = layout.sizes["cp"], layout.position["cp"]
        return _natural(length, n).view(n, -1)[r]


def _of_whole_sequences(model: nn.Module) -> list[nn.Module]:
    """Return plain modules that may look at more of a sequence than a rank has.

    All other modules declare `pointwise` or a plan of styles. They compute each token separately,
    or attend by a `core`.
    """
    whole = [part.module for part in parts(model) if part.style == "whole"]
    return [*whole, *(gap.module for gap in gaps(model))]


def _problems_of_ring(attention: Any, plan: Plan) -> list[Problem]:
    found = []
    if not isinstance(attention.core, ScaledDotProduct):
        expected = "None, because method='ring' supports no other core"
        found.append(Problem("core", ..., expected, Fix(attention, "core", None), attention))
    limited = attention.visibility.limits(plan.sequence_length)
    if limited or attention.sink is not None:
        expected = "no window, chunk or sink with method='ring'; method='all_gather' supports them"
        found.append(Problem("", ..., expected, component=attention))
    return found


class _Gathered:
    """Attention of this rank's queries to the gathered keys and values of all ranks."""

    def __init__(self, core: AttentionCore, mesh: "DeviceMesh"):
        self._core = core
        self._mesh = mesh

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BLGK: torch.Tensor,
        v_BLGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
        **of_scores: float,
    ) -> torch.Tensor:
        seen: dict[str, Any] = {"visibility": visibility, "sink_H": sink_H, **of_scores}
        k_BSGK, v_BSGK = _gather(k_BLGK, self._mesh), _gather(v_BLGK, self._mesh)
        if queries is not None and queries.documents_BL is not None:
            places = self._gathered(queries)
            return self._core(q_BLHK, k_BSGK, v_BSGK, queries, places, **seen)
        # Each of the rank's two chunks of queries sees all keys up to the end of the chunk. So
        # later keys are not computed, and a causal core needs no mask.
        n, rank = self._mesh.size(), self._mesh.get_local_rank()
        natural_S = _natural(k_BSGK.shape[1], n, q_BLHK.device).argsort()
        k_BSGK, v_BSGK = k_BSGK[:, natural_S], v_BSGK[:, natural_S]
        chunks = q_BLHK.chunk(2, dim=1)
        ends = [(chunk + 1) * chunks[0].shape[1] for chunk in (rank, 2 * n - 1 - rank)]
        outs = [
            self._core(q_BCHK, k_BSGK[:, :end], v_BSGK[:, :end], **seen)
            for q_BCHK, end in zip(chunks, ends, strict=True)
        ]
        return torch.cat(outs, dim=1)

    def _gathered(self, queries: Places) -> Places:
        """Return the places of the positions of all ranks, with their document numbers."""
        return Places(*(None if x is None else _gather(x, self._mesh) for x in queries[:2]))


class _Ring:
    """Attention in one step for each rank, to the keys and values of that rank."""

    def __init__(self, core: AttentionCore, mesh: "DeviceMesh"):
        self._mesh = mesh

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BLGK: torch.Tensor,
        v_BLGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        from nanigpt.parallel.ring import ring_attention

        # The kernel needs values of the same width as keys.
        value_dim = v_BLGK.shape[-1]
        v_BLGK = F.pad(v_BLGK, (0, k_BLGK.shape[-1] - value_dim))
        q_BHLK, k_BGLK, v_BGLK = (x.transpose(1, 2) for x in (q_BLHK, k_BLGK, v_BLGK))
        out_BHLK = ring_attention(q_BHLK, k_BGLK, v_BGLK, self._mesh.get_group())
        return out_BHLK.transpose(1, 2)[..., :value_dim]


class _Exchanged:
    """Attention of all positions, for the heads that a rank gets by an exchange."""

    def __init__(self, core: AttentionCore, mesh: "DeviceMesh"):
        self._core = core
        self._mesh = mesh

    def __call__(
        self,
        q_BLHK: torch.Tensor,
        k_BLGK: torch.Tensor,
        v_BLGK: torch.Tensor,
        queries: Places | None = None,
        keys: Places | None = None,
        *,
        visibility: Visibility = CAUSAL,
        sink_H: torch.Tensor | None = None,
        **of_scores: float,
    ) -> torch.Tensor:
        n = self._mesh.size()
        order_S = _natural(n * q_BLHK.shape[1], n, q_BLHK.device)
        natural_S = order_S.argsort()
        q_BSHK, k_BSGK, v_BSGK = (self._to_heads(x)[:, natural_S] for x in (q_BLHK, k_BLGK, v_BLGK))
        places = None
        if queries is not None and queries.documents_BL is not None:
            both = [None if x is None else _gather(x, self._mesh) for x in queries[:2]]
            places = Places(*(None if x is None else x[:, natural_S] for x in both))
        if sink_H is not None:  # only for the heads that this rank gets
            sink_H = sink_H.chunk(n)[self._mesh.get_local_rank()]
        seen: dict[str, Any] = {"visibility": visibility, "sink_H": sink_H, **of_scores}
        out_BSHK = self._core(q_BSHK, k_BSGK, v_BSGK, places, **seen)
        return self._to_positions(out_BSHK[:, order_S])

    def _to_heads(self, x_BLHK: torch.Tensor) -> torch.Tensor:
        """Exchange a rank's positions of all heads for all positions of its heads."""
        parts = x_BLHK.unflatten(2, (self._mesh.size(), -1)).movedim(2, 0)
        return self._exchange(parts).movedim(0, 1).flatten(1, 2)

    def _to_positions(self, x_BSHK: torch.Tensor) -> torch.Tensor:
        parts = x_BSHK.unflatten(1, (self._mesh.size(), -1)).movedim(1, 0)
        return self._exchange(parts).movedim(0, 2).flatten(2, 3)

    def _exchange(self, parts: torch.Tensor) -> torch.Tensor:
        """Send part i of the first dim to rank i."""
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        each = [1] * self._mesh.size()
        return wait_for(all_to_all_single_autograd(parts.contiguous(), each, each, self._mesh))


def _gather(x_BL: torch.Tensor, mesh: "DeviceMesh") -> torch.Tensor:
    """Concatenate the tensors of all ranks along dim 1, with gradients."""
    from torch.distributed import _functional_collectives as functional

    name = "all_gather_single_autograd"
    if not hasattr(functional, name):  # torch 2.11
        name = "all_gather_tensor_autograd"
    gathered = wait_for(getattr(functional, name)(x_BL.contiguous(), 0, mesh))
    return torch.cat(gathered.chunk(mesh.size()), dim=1)


def _natural(length: int, n: int, device: torch.device | None = None) -> torch.Tensor:
    """Return positions in the order of the ranks that have them."""
    chunks = torch.arange(length, device=device).view(2 * n, -1)
    return torch.cat([torch.cat([chunks[r], chunks[2 * n - 1 - r]]) for r in range(n)])

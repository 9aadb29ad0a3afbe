"""Expert parallelism: ranks divide the experts of a mixture, and tokens travel there and back.

The axis `ep` is a factor of the ranks that share parameters (dp_shard x cp). Each of its ranks has
different tokens, and all tokens of the axis reach all experts. The other factor of dp_shard x cp
shards each expert (FSDP). `tp` divides the hidden features of each expert (expert tensor
parallelism).

Shapes: T tokens, N experts of a token, R rows (a token once for each of its experts), D dim, E all
experts, e experts of a rank, P ranks.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from nanigpt.models.moe.dispatch import Dispatched, Dispatcher, count, sorted_rows, weighted_sum
from nanigpt.models.moe.experts import Experts
from nanigpt.models.parameters import Places
from nanigpt.parallel.async_results import wait_for
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.plan import Plan
from nanigpt.parallel.tensor import indivisible
from nanigpt.problems import Fix, Problem

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Transport(Protocol):
    """A maker of dispatchers for the ranks of a mesh axis. DeepEP could be another one."""

    def dispatcher(self, mesh: "DeviceMesh") -> Dispatcher: ...


class ExpertParallel:
    """A policy that divides experts over the mesh axis `ep`.

    Args:
        transport: How tokens get to the ranks of their experts. None means `AllToAll`.
    """

    axes = ("ep", "tp")
    may_change_on_resume = True

    def __init__(self, *, transport: Transport | None = None):
        self.transport = transport or AllToAll()

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why the ranks of `ep` and `tp` cannot divide the experts."""
        ep, tp = plan.sizes["ep"], plan.sizes["tp"]
        experts = [module for module in model.modules() if isinstance(module, Experts)]
        if ep > 1 and not experts:
            expected = "1 for a model without a mixture of experts"
            return [Problem("ep", ep, expected, Fix(plan.mesh, "ep", 1), plan.mesh)]
        numbers = [(module, "n_experts", module.n_experts) for module in experts]
        widths = [(module, "hidden_dim", module.hidden_dim) for module in experts]
        return [*indivisible(numbers, ep, f"ep={ep}"), *indivisible(widths, tp, f"tp={tp}")]

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Divide weights, still on meta, and replace dispatchers, in place."""
        ep, tp = layout.sizes["ep"], layout.sizes["tp"]
        if ep * tp == 1:
            return
        names = [name for name, size in (("ep", ep), ("tp", tp)) if size > 1]
        mesh = layout.along(*names) if ep == 1 else layout.experts_along(*names)
        places = Places(model)
        for experts in model.modules():
            if isinstance(experts, Experts):
                experts.sharers = tp
                experts.local = _local
                if ep > 1:
                    experts.dispatcher = self.transport.dispatcher(layout.experts_along("ep"))
                _divide(experts, mesh, places)


class AllToAll:
    """A transport by which each rank sends each other rank exactly the rows for its experts."""

    def dispatcher(self, mesh: "DeviceMesh") -> Dispatcher:
        return AllToAllDispatcher(mesh)


class AllToAllDispatcher:
    """A dispatcher that sorts rows by expert, and so by rank. Receivers sort their rows again."""

    def __init__(self, mesh: "DeviceMesh"):
        self._mesh = mesh

    def dispatch(self, x_TD: torch.Tensor, experts_TN: torch.Tensor, n_experts: int) -> Dispatched:
        order_R = experts_TN.flatten().argsort(stable=True)
        sent_Pe = count(experts_TN, n_experts).unflatten(0, (self._mesh.size(), -1))
        got_Pe = self._exchange(sent_Pe)
        # The host needs these numbers to allocate memory. It waits only here in a layer.
        sent, got = torch.stack([sent_Pe.sum(1), got_Pe.sum(1)]).tolist()
        x_RD = self._send(sorted_rows(x_TD, order_R, experts_TN.shape[1]), sent, got)
        # The received rows are sorted by sender, then by expert.
        each_e = torch.arange(got_Pe.shape[1], device=x_TD.device).repeat(got_Pe.shape[0])
        expert_R = each_e.repeat_interleave(got_Pe.flatten(), output_size=x_RD.shape[0])
        here_R = expert_R.argsort(stable=True)
        return Dispatched(x_RD[here_R], got_Pe.sum(0), (order_R, here_R, sent, got))

    def combine(
        self, out_RD: torch.Tensor, weights_TN: torch.Tensor, way_back: Any
    ) -> torch.Tensor:
        order_R, here_R, sent, got = way_back
        back_R = torch.empty_like(here_R)
        back_R[here_R] = torch.arange(here_R.shape[0], device=here_R.device)
        return weighted_sum(self._send(out_RD[back_R], got, sent), weights_TN, order_R)

    def _exchange(self, sent_Pe: torch.Tensor) -> torch.Tensor:
        """Send row p to rank p."""
        from torch.distributed._functional_collectives import all_to_all_single

        each = [1] * self._mesh.size()
        return wait_for(all_to_all_single(sent_Pe, each, each, self._mesh))

    def _send(self, x_RD: torch.Tensor, sent: list[int], got: list[int]) -> torch.Tensor:
        """Send `sent[p]` rows to each rank p and get `got[p]` rows from it; gradients go back."""
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        for n in (*sent, *got):
            torch._check(n >= 0)  # torch.compile does not know it
        return wait_for(all_to_all_single_autograd(x_RD, got, sent, self._mesh))


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of all experts."""
    for module in model.modules():
        if isinstance(module, Experts):
            yield from module.parameters()


def _divide(experts: Experts, mesh: "DeviceMesh", places: Places) -> None:
    """Make DTensors that divide experts over `ep` and hidden features over `tp`."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    hidden = {"w1": Shard(1), "w3": Shard(1), "w2": Shard(2), "bias1": Shard(1), "bias3": Shard(1)}
    for name, weight in list(experts._parameters.items()):
        if weight is not None and not isinstance(weight, DTensor):
            along = {"ep": Shard(0), "tp": hidden.get(name, Replicate())}
            placements = [along[axis] for axis in mesh.mesh_dim_names or ()]
            # On meta, there are no numbers to scatter.
            places.replace(weight, distribute_tensor(weight, mesh, placements, src_data_rank=None))


def _local(weight: Any) -> torch.Tensor:
    """Return this rank's part of a DTensor. Ranks with equal parts get parts of the gradient."""
    from torch.distributed.tensor import Partial

    parts = [Partial() if p.is_replicate() else p for p in weight.placements]
    return weight.to_local(grad_placements=parts)

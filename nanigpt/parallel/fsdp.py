"""Fully sharded data parallelism."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.protocol import compute_dtype, shard_groups
from nanigpt.parallel.expert import expert_parameters
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.plan import Plan
from nanigpt.problems import Fix, Problem, refuse, require_choice

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

Reshard = Literal["default", "always", "never"]


class FullyShardedDataParallel:
    """FSDP2, where every rank keeps a shard of each parameter, gradient and optimizer state.

    Parameters are gathered group by group, in the groups that `shard_groups()` of the model
    returns. If `dp_replicate` is above 1, the shards have copies, whose gradients are summed too
    (HSDP).

    Args:
        param_dtype: Dtype of gathered parameters, and so of their communication. Modules that
            declare `gathered_in_float32`, and parameters in no group, stay in float32.
        reduce_dtype: Dtype in which gradients are summed.
        reshard_after_forward: Whether gathered parameters are freed after a group's forward pass
            and gathered again in the backward pass. `default` keeps the parameters of the last
            group, which the backward pass needs at once. It also keeps the parameters of all groups
            of a pipeline, where every microbatch would gather them again.
        prefetch: Number of groups to gather ahead. With 0, FSDP gathers the next group where it
            can.
        cpu_offload: Keep shards and optimizer state in the host's memory.
    """

    def __init__(
        self,
        *,
        param_dtype: Annotated[torch.dtype, tags.ComputeDType] = torch.float32,
        reduce_dtype: torch.dtype = torch.float32,
        reshard_after_forward: Reshard = "default",
        prefetch: int = 0,
        cpu_offload: bool = False,
    ):
        require_choice(get_args(Reshard), reshard_after_forward=reshard_after_forward)
        if prefetch < 0:
            refuse("prefetch", prefetch, "0 or more")
        self.param_dtype = param_dtype
        self.reduce_dtype = reduce_dtype
        self.reshard_after_forward = reshard_after_forward
        self.prefetch = prefetch
        self.cpu_offload = cpu_offload

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why parameters cannot be sharded with these arguments."""
        found = _scalars(model) if plan.copies > 1 else []
        computed = compute_dtype(model)
        if self.param_dtype == computed:
            return found
        expected = (
            f"{computed}, the model's compute dtype; otherwise losses would depend on the number "
            "of processes"
        )
        fix = Fix(None, "param_dtype", computed)
        return [*found, Problem("param_dtype", self.param_dtype, expected, fix)]

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Shard `model`, still on meta, in place. Do nothing if one rank holds all of it."""
        sizes = layout.sizes
        replicate, shard = sizes["dp_replicate"], sizes["dp_shard"] * sizes["cp"]
        if replicate * shard == 1:
            return
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
        )

        # PyTorch warns that writing to an input in place could lose a hook. Blocks do not do so.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = layout.along("fsdp")
        if replicate > 1:
            mesh = layout.along("dp_replicate", "fsdp")
        options: dict[str, Any] = {
            "mesh": mesh,
            "shard_placement_fn": self._placement(model, layout, mesh),
        }
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())

        def policy(param_dtype: torch.dtype) -> MixedPrecisionPolicy:
            return MixedPrecisionPolicy(
                param_dtype=param_dtype,
                reduce_dtype=self.reduce_dtype,
                cast_forward_inputs=False,  # the embedding decides the activations' dtype
            )

        groups = shard_groups(model)
        for i, group in enumerate(groups):
            together: Any = group if len(group) > 1 else group[0]
            exact = any(getattr(module, "gathered_in_float32", False) for module in group)
            fully_shard(
                together,
                mp_policy=policy(torch.float32 if exact else self.param_dtype),
                reshard_after_forward=self._reshards(layout, last=i == len(groups) - 1),
                **options,
            )
        # The root's own parameters, such as a tied weight, are needed during the whole pass.
        fully_shard(model, mp_policy=policy(torch.float32), reshard_after_forward=False, **options)
        self._prefetch([group[0] for group in groups])
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The loss is divided by the tokens of all ranks, so gradients are summed. With only
                # a factor of 1, FSDP would ask for a premultiplied sum, which gloo lacks.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _placement(
        self, model: nn.Module, layout: Layout, mesh: "DeviceMesh"
    ) -> Callable[..., Any] | None:
        """Return a function that chooses dim and ranks of shards, or None for dim 0 of all."""
        experts = set(expert_parameters(model))
        if not experts:
            return None
        from torch.distributed.fsdp._fully_shard import _fsdp_common as common

        def over(mesh: "DeviceMesh") -> common.FSDPMeshInfo:
            if mesh.ndim == 1:
                return common.FSDPMeshInfo(mesh, shard_mesh_dim=0)
            return common.HSDPMeshInfo(mesh, shard_mesh_dim=1, replicate_mesh_dim=0)

        usual = over(mesh)
        if layout.sizes["ep"] == 1:
            size = usual.shard_mesh_size
            return lambda p: _sharded_dim(p, size) if p in experts else None
        # Parameters with different process groups are gathered and summed one group after the
        # other. PyTorch recognises groups by the identity of these objects.
        theirs = over(
            layout.experts_along("dp_replicate", "fsdp")
            if mesh.ndim == 2
            else layout.experts_along("fsdp")
        )

        def place(parameter: nn.Parameter) -> common.ShardPlacementResult:
            if parameter not in experts:
                return common.ShardPlacementResult(None, usual)
            dim = _sharded_dim(parameter, theirs.shard_mesh_size)
            return common.ShardPlacementResult(dim, theirs)

        return place

    def _reshards(self, layout: Layout, *, last: bool) -> bool:
        if self.reshard_after_forward == "default":
            return not last and layout.sizes["pp"] == 1
        return self.reshard_after_forward == "always"

    def _prefetch(self, modules: list[Any]) -> None:
        if not self.prefetch:
            return
        for i, module in enumerate(modules):
            ahead = modules[i + 1 : i + 1 + self.prefetch]
            behind = modules[max(i - self.prefetch, 0) : i][::-1]
            module.set_modules_to_forward_prefetch(ahead)
            module.set_modules_to_backward_prefetch(behind)


def _scalars(model: nn.Module) -> list[Problem]:
    """Return a problem for each parameter without a dim, which FSDP2 cannot shard."""
    return [
        Problem("", ..., f"the parameter {name!r} with a dim, such as torch.ones(1), to shard it",
                component=module)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 0
    ]  # fmt: skip


def _sharded_dim(parameter: nn.Parameter, n: int) -> "Shard":
    """Return a dim of stacked weights that n ranks share evenly, preferably the dim of experts.

    If there are more ranks than experts, another dim is used, which `tp` must not split.
    """
    from torch.distributed.tensor import Shard

    local = getattr(parameter, "_local_tensor", parameter)
    taken = {p.dim for p in getattr(parameter, "placements", ()) if p.is_shard()}
    even = [d for d, size in enumerate(local.shape) if size % n == 0 and (d == 0 or d not in taken)]
    return Shard(even[0] if even else 0)

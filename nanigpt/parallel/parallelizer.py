"""Spreads a model over the processes of the run."""

from typing import Annotated

import torch
from torch import nn

from nanigpt import tags
from nanigpt.parallel.world import World


class FullyShardedDataParallel:
    """FSDP2: every rank keeps a shard of each parameter, gradient and optimizer state.

    Parameters are gathered group by group, as the model's `shard_groups()` says.

    Args:
        param_dtype: dtype that gathered parameters, and so their communication, have. Modules that
            say `gathered_in_float32`, and what is in no group, stay in float32.
        reduce_dtype: dtype that gradients are summed in.
        reshard_after_forward: free gathered parameters after a group's forward pass and gather
            them again in the backward pass.
    """

    def __init__(
        self,
        *,
        param_dtype: Annotated[torch.dtype, tags.ComputeDType] = torch.float32,
        reduce_dtype: torch.dtype = torch.float32,
        reshard_after_forward: bool = True,
    ):
        self.param_dtype = param_dtype
        self.reduce_dtype = reduce_dtype
        self.reshard_after_forward = reshard_after_forward

    def apply(self, model: nn.Module, mesh) -> None:
        """Shards `model`, still on meta, in place over the one-dimensional `mesh`."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        def policy(param_dtype: torch.dtype) -> MixedPrecisionPolicy:
            return MixedPrecisionPolicy(
                param_dtype=param_dtype,
                reduce_dtype=self.reduce_dtype,
                cast_forward_inputs=False,  # the embedding decides the activations' dtype
            )

        for group in model.shard_groups():
            exact = any(getattr(module, "gathered_in_float32", False) for module in group)
            fully_shard(
                group if len(group) > 1 else group[0],
                mesh=mesh,
                mp_policy=policy(torch.float32 if exact else self.param_dtype),
                reshard_after_forward=self.reshard_after_forward,
            )
        fully_shard(model, mesh=mesh, mp_policy=policy(torch.float32))
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The loss is divided by the tokens of all ranks, so gradients are summed. A factor
                # of 1 alone asks for a premultiplied sum, which gloo lacks.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


class Parallelizer:
    """Applies every kind of parallelism of the run to a model on meta."""

    def __init__(self, *, fsdp: FullyShardedDataParallel):
        self.fsdp = fsdp

    def parallelize(self, model: nn.Module, world: World) -> None:
        """Shards `model` in place; one process is left as it is."""
        if world.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("dp_shard",))
        self.fsdp.apply(model, mesh)

    def data_parallel_size(self, world: World) -> int:
        """Number of ranks that read different data."""
        return world.size

    def data_parallel_rank(self, world: World) -> int:
        return world.rank

    def synchronize_gradients(self, model: nn.Module, enabled: bool) -> None:
        """Whether the next backward pass sums gradients over ranks, or only accumulates them."""
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(enabled)

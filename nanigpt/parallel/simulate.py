"""The shards of one rank of a simulated world, found on a CPU without memory for weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from nanigpt.models.decoder import Decoder
from nanigpt.parallel.parallelizer import Parallelizer
from nanigpt.parallel.world import World


@dataclass(frozen=True)
class Shard:
    """A rank's part of a parameter.

    Attributes:
        name: Name of the parameter.
        shape: Shape of the whole parameter.
        local: Shape of the rank's part.
        split: Axes of the mesh along which the parameter is split, and the dims of the parameter.
    """

    name: str
    shape: tuple[int, ...]
    local: tuple[int, ...]
    split: str


def shards(
    parallelizer: Parallelizer, model: Decoder, *, ranks: int, rank: int, local_batch: int
) -> list[Shard]:
    """Shard `model`, in place and on meta, as rank `rank` of `ranks` does; return its shards.

    Raises:
        UsageError: The mesh cannot have this number of ranks.
    """
    parallelizer.tensor.asynchronous = False  # needs GPUs, and changes no shard
    with fake_world(ranks=ranks, rank=rank) as world:
        layout = parallelizer.mesh.layout(world)
        parallel = parallelizer.parallelize(model, layout, local_batch=local_batch)
        return [
            Shard(
                name,
                tuple(parameter.shape),
                tuple(getattr(parameter, "_local_tensor", parameter).shape),
                _split(parameter),
            )
            for name, parameter in parallel.model.named_parameters()
        ]


def _split(parameter: Any) -> str:
    placements = getattr(parameter, "placements", ())
    axes = parameter.device_mesh.mesh_dim_names if placements else ()
    split = [
        f"{axis}: dim {placement.dim}"
        for axis, placement in zip(axes, placements, strict=True)
        if not placement.is_replicate()
    ]
    return ", ".join(split) or "whole"


@contextlib.contextmanager
def fake_world(*, ranks: int, rank: int) -> Iterator[World]:
    """Provide a process group whose collectives return at once and send nothing."""
    if ranks > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield World(rank=rank, size=ranks, device=torch.device("cpu"))
    finally:
        if ranks > 1:
            dist.destroy_process_group()

"""The mesh: the number of ranks of each kind of parallelism, and the place of this rank."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import distributed as dist

from nanigpt import tags
from nanigpt.parallel.world import World
from nanigpt.problems import Fix, Problem, refuse, refuse_all

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh, in one description for all code that loops over axes.

    Attributes:
        name: Name of the argument of `Mesh` that has the size.
        tag: Tag of the knob that sets the size.
        metric: Name of the axis's process group in metrics and traces.
        one_process: Size with which any number of processes can inspect a run. It is 1, or -1 for
            the axis that takes the ranks that the other axes leave.
        is_part: Whether the axis divides ranks of other axes, and is no factor of the world.
        needs_new_torch: Whether the axis needs torch 2.13.
    """

    name: str
    tag: type[Any]
    metric: str
    one_process: int = 1
    is_part: bool = False
    needs_new_torch: bool = True


MESH_AXES = (
    Axis("pp", tags.PipelineParallel, "pp"),
    Axis("dp_replicate", tags.DataParallelReplicate, "dp_replicate", needs_new_torch=False),
    Axis("dp_shard", tags.DataParallelShard, "fsdp", one_process=-1, needs_new_torch=False),
    Axis("cp", tags.ContextParallel, "cp"),
    Axis("tp", tags.TensorParallel, "tp"),
    Axis("ep", tags.ExpertParallel, "ep", is_part=True),
)
"""All axes, outermost first."""

AXES = tuple(axis.name for axis in MESH_AXES if not axis.is_part)
"""Names of the axes whose product is the world."""


class Mesh:
    """Sizes of the axes in which ranks are arranged, outermost first. Their product is the world.

    Neighbouring ranks differ in `tp` first, which sends the most messages and needs the fastest
    links.

    Args:
        pp: Number of ranks that pipeline stages are divided over.
        dp_replicate: Number of copies of the sharded model (HSDP).
        dp_shard: Number of ranks that parameters are sharded over.
        cp: Number of ranks that a sequence is split over.
        tp: Number of ranks that a matrix is split over.
        ep: Number of ranks that experts are divided over. They are neighbours among the ranks of
            dp_shard x cp, not a further axis.

    One axis may be -1. It then takes the ranks that the other axes leave.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        pp: Annotated[int, tags.PipelineParallel] = 1,
        dp_replicate: Annotated[int, tags.DataParallelReplicate] = 1,
        dp_shard: Annotated[int, tags.DataParallelShard] = -1,
        cp: Annotated[int, tags.ContextParallel] = 1,
        tp: Annotated[int, tags.TensorParallel] = 1,
        ep: Annotated[int, tags.ExpertParallel] = 1,
    ):
        self.ep = ep
        self.axes = dict(zip(AXES, (pp, dp_replicate, dp_shard, cp, tp), strict=True))
        refuse_all(
            Problem(axis, size, "at least 1, or -1 for all ranks that the other axes leave")
            for axis, size in self.axes.items()
            if size < 1 and size != -1
        )
        if ep < 1:
            refuse("ep", ep, "at least 1")
        inferred = [axis for axis, size in self.axes.items() if size == -1]
        if len(inferred) > 1:
            refuse(inferred[1], -1, f"-1 for at most one axis, but {inferred[0]} is -1 too")

    @property
    def least(self) -> int:
        """Return the smallest world that the axes fit; without a -1, no other world fits."""
        known = self._known
        if -1 not in (self.axes["dp_shard"], self.axes["cp"]):
            return known
        sharers = abs(self.axes["dp_shard"] * self.axes["cp"])
        return known * (self.ep // math.gcd(self.ep, sharers))

    @property
    def _known(self) -> int:
        return math.prod(size for size in self.axes.values() if size != -1)

    def problems(self, world_size: int) -> list[Problem]:
        """Return the reasons why `world_size` ranks cannot be arranged in these axes."""
        known, least = self._known, self.least
        inferred = -1 in self.axes.values()
        if world_size % least or (not inferred and world_size != known):
            needed = f"a multiple of {least}" if inferred else str(known)
            axes = self.axes | ({"ep": self.ep} if self.ep > 1 else {})
            advice = "start another number of processes, or change an axis"
            fix = Fix(None, "dp_shard", -1) if self.axes["dp_shard"] != -1 else advice
            return [Problem("", ..., f"{needed} ranks for {_show(axes)}, not {world_size}", fix)]
        sizes = self._inferred(world_size)
        if sizes["dp_shard"] * sizes["cp"] % self.ep:
            expected = (
                f"a divisor of dp_shard={sizes['dp_shard']} x cp={sizes['cp']}, because these "
                "ranks divide the experts"
            )
            return [Problem("ep", self.ep, expected)]
        return []

    def sizes(self, world_size: int) -> dict[str, int]:
        """Return the sizes of all axes, and of `ep`, in a world of `world_size` ranks.

        Raises:
            ComponentError: The product of the axes cannot be the world, or `ep` does not divide
                dp_shard x cp.
        """
        refuse_all(self.problems(world_size))
        return {**self._inferred(world_size), "ep": self.ep}

    def _inferred(self, world_size: int) -> dict[str, int]:
        return {a: world_size // self._known if s == -1 else s for a, s in self.axes.items()}

    def layout(self, world: World) -> "Layout":
        """Return the place of this rank. All ranks call this method together."""
        sizes = self.sizes(world.size)
        axes = [sizes[axis] for axis in AXES]
        pp, replicate, shard, cp, tp = axes
        position = dict(zip(AXES, _coordinates(world.rank, axes), strict=True))
        if world.size == 1:
            return Layout(world, sizes, position)
        from torch.distributed.device_mesh import init_device_mesh

        def mesh(**axes: int) -> "DeviceMesh":
            names = tuple(axes)
            return init_device_mesh(world.device.type, tuple(axes.values()), mesh_dim_names=names)

        # These meshes have the same ranks in the same order. Each use flattens other axes.
        parameters = mesh(pp=pp, dp_replicate=replicate, fsdp=shard * cp, tp=tp)
        losses = parameters["fsdp"]
        if replicate > 1:
            losses = parameters["dp_replicate", "fsdp"]._flatten("loss")
        return Layout(
            world,
            sizes,
            position,
            parameters=parameters,
            losses=losses,
            experts=None
            if self.ep == 1
            else mesh(pp=pp, dp_replicate=replicate, fsdp=shard * cp // self.ep, ep=self.ep, tp=tp),
            context=mesh(rest=pp * replicate * shard, cp=cp, tp=tp)["cp"] if cp > 1 else None,
        )


@dataclass(frozen=True)
class Layout:
    """The place of this rank in the mesh.

    Attributes:
        world: The processes of the run.
        sizes: Sizes of the axes, and of `ep`.
        position: Position of this rank along each axis.
        parameters: Mesh with axes pp, dp_replicate, fsdp (dp_shard x cp) and tp.
        experts: Mesh of experts' parameters, where experts are divided. It splits the axis fsdp
            into ranks that shard each expert (fsdp) and ranks that divide the experts (ep).
        losses: Mesh of ranks that see different tokens (dp_replicate x dp_shard x cp).
        context: Mesh of ranks that have parts of the same sequences (cp).
    """

    world: World
    sizes: dict[str, int]
    position: dict[str, int]
    parameters: "DeviceMesh | None" = None
    experts: "DeviceMesh | None" = None
    losses: "DeviceMesh | None" = None
    context: "DeviceMesh | None" = None

    @property
    def data_size(self) -> int:
        """Return the number of ranks that read different samples."""
        return self.sizes["dp_replicate"] * self.sizes["dp_shard"]

    @property
    def data_rank(self) -> int:
        """Return the index of this rank among the ranks that read different samples.

        Ranks that differ only in pp, cp or tp have the same index.
        """
        return self.position["dp_replicate"] * self.sizes["dp_shard"] + self.position["dp_shard"]

    def along(self, *axes: str) -> "DeviceMesh":
        """Return the part of the mesh of parameters that has these axes."""
        assert self.parameters is not None, "one process has no mesh"
        return self.parameters[axes if len(axes) > 1 else axes[0]]

    def experts_along(self, *axes: str) -> "DeviceMesh":
        """Return the part of the mesh of experts that has these axes."""
        assert self.experts is not None, "experts are not divided"
        return self.experts[axes if len(axes) > 1 else axes[0]]

    def group(self, axes: tuple[str, ...], axis: str) -> dist.ProcessGroup:
        """Return the process group of one axis of the mesh that a parameter is split over.

        A DTensor may have an equal mesh from an earlier set-up of this process, whose groups are
        different objects. So this method looks up the axis by its name.

        Args:
            axes: Names of all axes of the parameter's mesh.
            axis: Name of the axis.
        """
        mesh = self.experts_along(axis) if "ep" in axes else self.along(axis)
        return mesh.get_group()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks that see different tokens, in place."""
        if self.losses is not None and self.losses.size() > 1:
            dist.all_reduce(tensor, group=self.losses.get_group())
        return tensor

    def __str__(self) -> str:
        """Return the axes with more than one rank, such as `dp_shard=4, tp=2`."""
        return _show({axis: size for axis, size in self.sizes.items() if size > 1})


def _coordinates(rank: int, sizes: list[int]) -> list[int]:
    found = []
    for size in reversed(sizes):
        rank, here = divmod(rank, size)
        found.append(here)
    return found[::-1]


def _show(axes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in axes.items())

"""Shards of matrices exchanged among ranks for whole matrices, and back.

A DTensor would do it too, by its `redistribute`: but shards of FSDP within shards of tensor
parallelism it gathers whole on every rank, and on CPUs it gathers always (torch 2.13).

Shapes: K matrices of a stack, M rows, N columns; each may be what a rank has of them.
"""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist


def on_whole_matrices(
    compute: Callable[[torch.Tensor], torch.Tensor], x_KMN: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """What this rank has of `compute(stack)`, where each matrix is computed once.

    Matrices are divided among the ranks that have parts or copies of them, as evenly as their
    number permits. All ranks of the mesh call this together.

    Args:
        compute: of a stack of matrices, each by itself.
        x_KMN: what this rank has of the stack.
        like: a DTensor that is split like one of the matrices, or like the stack.
    """
    exchanges = []
    for exchange in _exchanges(like):
        x_KMN = exchange.there(x_KMN)
        exchanges.append(exchange)
    x_KMN = compute(x_KMN)
    for exchange in reversed(exchanges):
        x_KMN = exchange.back(x_KMN)
    return x_KMN


class _Exchange(abc.ABC):
    """Among the ranks of one mesh axis, which divide a stack that all have."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank, self.size = group.rank(), group.size()

    def there(self, x_KMN: torch.Tensor) -> torch.Tensor:
        self.shape = x_KMN.shape
        self.shares = [_share(self.shape[0], self.size, r, even=True) for r in range(self.size)]
        return self._there(x_KMN)

    @abc.abstractmethod
    def _there(self, x_KMN: torch.Tensor) -> torch.Tensor: ...

    @abc.abstractmethod
    def back(self, x_KMN: torch.Tensor) -> torch.Tensor: ...

    def _send(self, parts: list[torch.Tensor], shapes: list[list[int]]) -> list[torch.Tensor]:
        """One part to each rank; what comes from each has such a shape."""
        sizes = [torch.Size(shape).numel() for shape in shapes]
        got = parts[0].new_empty(sum(sizes))
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_to_all_single(got, flat, sizes, [p.numel() for p in parts], group=self.group)
        return [x.view(shape) for x, shape in zip(got.split(sizes), shapes, strict=True)]

    def _shares_of_stack(self) -> list[list[int]]:
        return [[share, *self.shape[1:]] for share in self.shares]


class _OfParts(_Exchange):
    """Each has a part of every matrix.

    Args:
        dim: of the stack that is split.
        size: of what is split.
    """

    def __init__(self, group: dist.ProcessGroup, dim: int, size: int):
        super().__init__(group)
        self.dim = dim
        self.parts = [_share(size, self.size, rank) for rank in range(self.size)]

    def _there(self, x_KMN: torch.Tensor) -> torch.Tensor:
        shapes = [list(self.shape) for _ in self.parts]
        for shape, part in zip(shapes, self.parts, strict=True):
            shape[0], shape[self.dim] = self.shares[self.rank], part
        return torch.cat(self._send(list(x_KMN.split(self.shares)), shapes), dim=self.dim)

    def back(self, x_KMN: torch.Tensor) -> torch.Tensor:
        parts = list(x_KMN.split(self.parts, dim=self.dim))
        return torch.cat(self._send(parts, self._shares_of_stack()))


class _OfCopies(_Exchange):
    """Each has every matrix."""

    def _there(self, x_KMN: torch.Tensor) -> torch.Tensor:
        return x_KMN.split(self.shares)[self.rank]

    def back(self, x_KMN: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._send([x_KMN] * self.size, self._shares_of_stack()))


def _exchanges(like: torch.Tensor) -> list[_Exchange]:
    """Those that make matrices whole, in this order.

    What was split last is put together first. FSDP splits what tensor or expert parallelism left,
    although its axis is the first of the mesh; its placements have a `split_factor` then.
    """
    mesh, of_stack = like.device_mesh, like.ndim == 3
    sizes = list(like.shape)
    made: list[_Exchange] = []
    strided = [hasattr(placement, "split_factor") for placement in like.placements]
    for axis in sorted(range(mesh.ndim), key=strided.__getitem__):
        placement, group = like.placements[axis], mesh.get_group(axis)
        if placement.is_replicate():
            made.append(_OfCopies(group))
            continue
        dim: Any = placement.dim
        if not (of_stack and dim == 0):  # else each rank has some matrices whole
            made.append(_OfParts(group, dim if of_stack else dim + 1, sizes[dim]))
        sizes[dim] = _share(sizes[dim], mesh.size(axis), mesh.get_local_rank(axis))
    return made[::-1]


def _share(size: int, ranks: int, rank: int, *, even: bool = False) -> int:
    """How much of `size` a rank has: as DTensor splits, which may leave the last ranks with
    nothing, or evenly."""
    if even:
        return size // ranks + (rank < size % ranks)
    full = -(-size // ranks)
    return min(max(size - full * rank, 0), full)

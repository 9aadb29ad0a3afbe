"""Exchange shards of matrices among ranks for whole matrices, and back.

`DTensor.redistribute` could do it too. But it gathers shards of FSDP within shards of tensor
parallelism on every rank, and on CPUs it always gathers (torch 2.13).

Shapes: K matrices of a stack, M rows, N columns; each may be the part of one rank.
"""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor


def on_whole_matrices(
    compute: Callable[[torch.Tensor], torch.Tensor], x_KMN: torch.Tensor, like: DTensor
) -> torch.Tensor:
    """Return this rank's part of `compute(stack)`, where one rank computes each matrix.

    Matrices are divided among the ranks that have parts or copies of them, as evenly as their
    number permits. All ranks of the mesh call this together.

    Args:
        compute: Function of a stack of matrices that treats each separately.
        x_KMN: This rank's part of the stack.
        like: A DTensor with the placements of one of the matrices, or of the stack.
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
    """An exchange among the ranks of one mesh axis, which divide a stack."""

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
        """Send one part to each rank, and return the parts that come from them.

        Args:
            parts: One part for each rank.
            shapes: Shape of the part that comes from each rank.
        """
        sizes = [torch.Size(shape).numel() for shape in shapes]
        got = parts[0].new_empty(sum(sizes))
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_to_all_single(got, flat, sizes, [p.numel() for p in parts], group=self.group)
        return [x.view(shape) for x, shape in zip(got.split(sizes), shapes, strict=True)]

    def _shares_of_stack(self) -> list[list[int]]:
        return [[share, *self.shape[1:]] for share in self.shares]


class _OfParts(_Exchange):
    """An exchange among ranks that have a part of every matrix.

    Args:
        group: The ranks.
        dim: Dim of the stack that is split.
        size: Size of that dim before the split.
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
    """A division among ranks that have every matrix."""

    def _there(self, x_KMN: torch.Tensor) -> torch.Tensor:
        return x_KMN.split(self.shares)[self.rank]

    def back(self, x_KMN: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._send([x_KMN] * self.size, self._shares_of_stack()))


def _exchanges(like: DTensor) -> list[_Exchange]:
    """Return the exchanges that make matrices whole, in order.

    The last split is undone first. FSDP splits after tensor or expert parallelism, although its
    axis is the first of the mesh; its placements then have a `split_factor`.
    """
    mesh, of_stack = like.device_mesh, like.ndim == 3
    sizes = list(like.shape)
    made: list[_Exchange] = []
    strided = [hasattr(placement, "split_factor") for placement in like.placements]
    for axis in sorted(range(mesh.ndim), key=strided.__getitem__):
        placement: Any = like.placements[axis]
        group = mesh.get_group(axis)
        if placement.is_replicate():
            made.append(_OfCopies(group))
            continue
        dim = placement.dim
        if not (of_stack and dim == 0):  # otherwise each rank has some whole matrices
            made.append(_OfParts(group, dim if of_stack else dim + 1, sizes[dim]))
        sizes[dim] = _share(sizes[dim], mesh.size(axis), mesh.get_local_rank(axis))
    return made[::-1]


def _share(size: int, ranks: int, rank: int, *, even: bool = False) -> int:
    """Return a rank's share of `size`.

    Args:
        size: The size to divide.
        ranks: Number of ranks.
        rank: The rank.
        even: Divide evenly. Without it, divide as DTensor does, where the last ranks may get
            nothing.
    """
    if even:
        return size // ranks + (rank < size % ranks)
    full = -(-size // ranks)
    return min(max(size - full * rank, 0), full)

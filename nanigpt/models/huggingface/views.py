"""Tensors that are read from files part by part, and rearranged on the way.

A view has the shape of the whole tensor. `read` takes a region, which is one slice (start, stop)
for each dim, and reads no more of the file than that region needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Region = tuple[slice, ...]

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # FP4 without its first bit, the sign


class View(Protocol):
    """A tensor that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, region: Region) -> torch.Tensor: ...


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file.

    Args:
        handle: Result of `safe_open(...).get_slice`.
    """

    handle: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_shape())

    def read(self, region: Region) -> torch.Tensor:
        return self.handle[region]


@dataclass(frozen=True)
class Stacked:
    """Tensors of one shape, stacked along a new first dim."""

    items: Sequence[View]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.items), *self.items[0].shape)

    def read(self, region: Region) -> torch.Tensor:
        return torch.stack([item.read(region[1:]) for item in self.items[region[0]]])


@dataclass(frozen=True)
class Transposed:
    """A tensor with its last two dims exchanged."""

    base: View

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, rows, columns = self.base.shape
        return (*outer, columns, rows)

    def read(self, region: Region) -> torch.Tensor:
        *outer, rows, columns = region
        return self.base.read((*outer, columns, rows)).transpose(-1, -2)


@dataclass(frozen=True)
class Part:
    """`size` items of a dim: every `step`-th one from `start` on."""

    base: View
    dim: int
    start: int
    size: int
    step: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.base.shape)
        shape[self.dim] = self.size
        return tuple(shape)

    def read(self, region: Region) -> torch.Tensor:
        here = region[self.dim]
        first = self.start + here.start * self.step
        last = self.start + (here.stop - 1) * self.step
        wider = list(region)
        wider[self.dim] = slice(first, last + 1)
        read = self.base.read(tuple(wider))
        return read[(*[slice(None)] * self.dim, slice(None, None, self.step))]


@dataclass(frozen=True)
class Reordered:
    """Rows (dim 0) in another order: row r is row `order[r]` of the base."""

    base: View
    order: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, region: Region) -> torch.Tensor:
        wanted = self.order[region[0]]
        first, last = int(wanted.min()), int(wanted.max())
        return self.base.read((slice(first, last + 1), *region[1:]))[wanted - first]


@dataclass(frozen=True)
class Mxfp4:
    """Rows of 4-bit numbers, where 32 numbers share a scale (OCP Microscaling Formats, 2023).

    Args:
        blocks: [..., n, 16] bytes, each of two numbers with the lower half first.
        scales: [..., n] exponents of 2, plus 127.
    """

    blocks: View
    scales: View

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, n, size = self.blocks.shape
        return (*outer, 2 * n * size)

    def read(self, region: Region) -> torch.Tensor:
        *outer, columns = region
        size = self.blocks.shape[-1]
        first, last = columns.start // (2 * size), -(-columns.stop // (2 * size))
        blocks = self.blocks.read((*outer, slice(first, last), slice(0, size)))
        scales = self.scales.read((*outer, slice(first, last)))
        codes = torch.stack([blocks & 0b1111, blocks >> 4], dim=-1).flatten(-2)
        values = torch.tensor(_MAGNITUDES)[(codes & 0b111).int()]
        values = torch.where(codes >= 0b1000, -values, values)
        values = torch.ldexp(values, (scales.int() - 127).unsqueeze(-1)).flatten(-2)
        before = 2 * size * first
        return values[..., columns.start - before : columns.stop - before]


@dataclass(frozen=True)
class BlockScaled:
    """A matrix in few bits, where each block has one factor (DeepSeek-V3, 2024, 3.3.2).

    Args:
        values: [m, n], for example in FP8.
        scales: [m / rows, n / columns], rounded up.
        block: Rows and columns of a block.
    """

    values: View
    scales: View
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, region: Region) -> torch.Tensor:
        wider = [
            slice(part.start // size, -(-part.stop // size))
            for part, size in zip(region, self.block, strict=True)
        ]
        scales = self.scales.read(tuple(wider)).float()
        for dim, (part, size) in enumerate(zip(region, self.block, strict=True)):
            block = torch.arange(part.start, part.stop) // size - part.start // size
            scales = scales.index_select(dim, block)
        return self.values.read(region).float() * scales

"""A model that is no decoder: it predicts the velocity of noisy images.

Shapes: B batch, H and W height and width, F features.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class TimeFeatures(nn.Module):
    """Sines and cosines of the time at several frequencies, which are a buffer."""

    def __init__(self, *, width: int, highest: float = 64.0):
        super().__init__()
        self.highest = highest
        self.register_buffer("frequencies", torch.empty(width // 2), persistent=False)
        self.mix = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        n = len(self.frequencies)
        steps = torch.arange(n, device=self.frequencies.device) / max(n - 1, 1)
        self.frequencies.copy_(math.pi * self.highest**steps)

    def forward(self, times_B: torch.Tensor) -> torch.Tensor:
        angles_BF = times_B[:, None] * self.frequencies
        return self.mix(torch.cat([angles_BF.sin(), angles_BF.cos()], dim=1))


class ResidualBlock(nn.Module):
    """Two matrices around a SiLU that a vector of the time shifts."""

    def __init__(self, *, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.shift = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x_BF: torch.Tensor, time_BF: torch.Tensor) -> torch.Tensor:
        return x_BF + self.down(F.silu(self.up(self.norm(x_BF)) + self.shift(time_BF)))


class Denoiser(nn.Module):
    """Model that predicts the velocity from an image to noise, at a point between them.

    Args:
        size: height and width of images.
        width: features between blocks.
        depth: number of blocks.
    """

    # Samples are no sequences: ranks of tensor parallelism compute the same.
    tensor_parallel = "whole"

    def __init__(self, *, size: int = 8, width: int = 128, depth: int = 2):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth}: expected at least one block")
        self.size = size
        self.embed = nn.Linear(size * size, width)
        self.time = TimeFeatures(width=width)
        self.blocks = nn.ModuleList(ResidualBlock(width=width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size * size)

    def forward(
        self,
        noisy_BHW: torch.Tensor,
        *,
        times_B: torch.Tensor,
        finish: Any = None,
        targets: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Return the velocity of each pixel, or the result of `finish` on the head's input."""
        x_BF, time_BF = self.embed(noisy_BHW.flatten(1)), self.time(times_B)
        for block in self.blocks:
            x_BF = block(x_BF, time_BF)
        x_BF = self.norm(x_BF)
        if finish is not None:
            return finish(self.head, x_BF, **targets)
        return self.head(x_BF).unflatten(1, (self.size, self.size))

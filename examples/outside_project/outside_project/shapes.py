"""Images that need no file: squares, discs and crosses, each a pure function of (seed, i).

Shapes: B batch, H and W height and width.
"""

from dataclasses import dataclass

import numpy as np
import torch

from nanigpt.data.batch import Batch

# The held-out images, which no training seed gives.
_VALIDATION = 2**40


@dataclass(frozen=True)
class ImageBatch(Batch):
    """Images, and the noise and time that each is mixed with.

    Attributes:
        images_BHW: from -1 to 1.
        noise_BHW: normal.
        times_B: from 0, the image, to 1, the noise.
    """

    images_BHW: torch.Tensor
    noise_BHW: torch.Tensor
    times_B: torch.Tensor


class Shapes:
    """A dataset of small images of one shape each.

    Args:
        size: height and width.
        n_validation: number of images held out.
    """

    def __init__(self, *, size: int = 8, n_validation: int = 256):
        if size < 6:
            raise ValueError(f"size={size}: expected at least 6 pixels")
        if n_validation < 1:
            raise ValueError(f"n_validation={n_validation}: expected at least 1")
        self.size = size
        self.n_validation = n_validation
        self.digest = f"shapes-{size}-{n_validation}"

    def setup(self) -> None:
        """Do nothing: there is nothing to read."""

    def summary(self) -> str:
        return f"endless images of {self.size} x {self.size}"

    def train_batch(self, samples: range, /, *, seed: int) -> ImageBatch:
        return self._batch(seed, samples)

    def validation_batch(self, samples: list[int], /) -> ImageBatch:
        return self._batch(_VALIDATION, samples)

    def _batch(self, seed: int, samples: range | list[int]) -> ImageBatch:
        drawn = [self._sample(np.random.default_rng((seed, i))) for i in samples]
        images, noise, times = (
            torch.from_numpy(np.stack(column).astype(np.float32))
            for column in zip(*drawn, strict=True)
        )
        return ImageBatch(images, noise, times)

    def _sample(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = self.size
        y, x = np.mgrid[:n, :n]
        radius = random.integers(1, n // 3 + 1)
        down, right = np.abs(y - random.integers(2, n - 2)), np.abs(x - random.integers(2, n - 2))
        shape = random.integers(3)
        if shape == 0:
            inside = np.maximum(down, right) <= radius
        elif shape == 1:
            inside = down**2 + right**2 <= radius**2
        else:
            inside = (np.minimum(down, right) == 0) & (np.maximum(down, right) <= radius)
        image = np.where(inside, 1.0, -1.0)
        return image, random.standard_normal((n, n)), random.random()

"""Flow matching along straight lines (rectified flow; Liu et al., 2022).

A point between an image and noise is `(1 - t) image + t noise`. The model is trained to predict the
velocity along this line, `noise - image`. From noise, Euler's method follows the velocity back to
an image.

Shapes: B batch, H and W height and width, P pixels.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.problems import Fix, Problem
from nanigpt.tasks.task import Task
from outside_project.denoiser import Denoiser
from outside_project.shapes import ImageBatch, Shapes

_SHADES = " .:-=+*#%@"


class FlowMatching(Task):
    """Task that trains a model to predict the velocity from images to noise.

    Args:
        sampling_steps: Euler steps from noise to the image that is shown after training.
    """

    def __init__(self, *, sampling_steps: int = 20):
        if sampling_steps < 1:
            raise ValueError(f"sampling_steps={sampling_steps}: expected at least 1")
        self.sampling_steps = sampling_steps

    def problems(self, model: nn.Module, data: Any, /) -> list[Problem]:
        """Compare the size of the model's images with that of the data's."""
        size = getattr(data, "size", None)
        if getattr(model, "size", None) == size:
            return []
        expected = f"{size}, the size of the data's images"
        return [Problem("size", model.size, expected, Fix(model, "size", size), model)]

    def weight(self, batch: ImageBatch, /) -> torch.Tensor:
        n = len(batch.times_B)
        return torch.tensor(n, dtype=torch.float32, device=batch.times_B.device)

    def inputs(self, batch: ImageBatch, /) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        t_B11 = batch.times_B[:, None, None]
        noisy_BHW = (1 - t_B11) * batch.images_BHW + t_B11 * batch.noise_BHW
        return noisy_BHW, {"times_B": batch.times_B}

    def targets(self, batch: ImageBatch, /) -> dict[str, torch.Tensor]:
        return {"velocity_BP": _velocity(batch)}

    def finish(
        self, head: nn.Module, hidden: torch.Tensor, /, *, velocity_BP: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over images of the mean squared error of their pixels."""
        return (head(hidden) - velocity_BP).square().mean(1).sum()[None]

    def evaluate(
        self,
        parallel: ParallelModel,
        data: Shapes,
        batches: Iterable[tuple[ImageBatch, float]],
        /,
    ) -> dict[str, float]:
        """Return `loss`, and `constant_loss` of the best constant prediction, the mean velocity."""
        device = parallel.layout.world.device
        # Loss and images; then sums over images of each pixel's velocity, and of its square.
        total = torch.zeros(2, dtype=torch.float64, device=device)
        moments = torch.zeros(2, data.size**2, dtype=torch.float64, device=device)
        for batch, counts in batches:
            sums = parallel.evaluate(self, batch)
            if counts and parallel.has_loss:
                velocity_BP = _velocity(batch).double()
                total += torch.stack([sums[0].double(), self.weight(batch).double()])
                moments += torch.stack([velocity_BP.sum(0), velocity_BP.square().sum(0)])
        loss, n = parallel.sum(total).tolist()
        mean_P, square_P = parallel.sum(moments) / n
        return {
            "loss": loss / n,
            "constant_loss": (square_P - mean_P.square()).mean().item(),
        }

    @torch.no_grad()
    def show(self, parallel: ParallelModel, data: Shapes, /) -> str:
        """Return a sampled image as text."""
        model = parallel.model.eval()
        noise = torch.randn(1, data.size, data.size, generator=torch.Generator().manual_seed(0))
        image_BHW = sample(model, noise.to(parallel.layout.world.device), self.sampling_steps)
        model.train()
        return "--- sampled image\n" + as_text(image_BHW[0].cpu()) + "\n---"


def sample(model: Denoiser, noise_BHW: torch.Tensor, steps: int) -> torch.Tensor:
    """Follow the velocity from noise, at t = 1, to images, at t = 0."""
    x_BHW = noise_BHW
    for i in range(steps, 0, -1):
        times_B = torch.full(x_BHW.shape[:1], i / steps, device=x_BHW.device)
        x_BHW = x_BHW - model(x_BHW, times_B=times_B) / steps
    return x_BHW


def as_text(image_HW: torch.Tensor) -> str:
    """Draw an image with two characters for each pixel. Pixels are from -1 to 1."""
    last = len(_SHADES) - 1
    levels = ((image_HW.clamp(-1, 1) + 1) / 2 * last).round().int().tolist()
    return "\n".join("".join(2 * _SHADES[level] for level in row).rstrip() for row in levels)


def _velocity(batch: ImageBatch) -> torch.Tensor:
    return (batch.noise_BHW - batch.images_BHW).flatten(1)

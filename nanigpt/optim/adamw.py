"""AdamW with weight decay on matrices only."""

from collections.abc import Iterable
from typing import Annotated

import torch

from nanigpt import tags
from nanigpt.errors import UsageError


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: Annotated[float, tags.LearningRate] = 3e-4,
    weight_decay: Annotated[float, tags.WeightDecay] = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over two groups: matrices, and all else undecayed.

    Upstream's fused kernel is taken, which exists for CPU and CUDA alike.

    Raises:
        UsageError: an argument is out of range.
    """
    for name, value in {"lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
        if not value >= 0:
            raise UsageError(f"optimizer.{name}={value}: expected 0 or more")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"optimizer.betas={betas}: expected two numbers from 0 to below 1")
    return torch.optim.AdamW(
        parameter_groups(named_parameters, weight_decay), lr=lr, betas=betas, eps=eps, fused=True
    )


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float
) -> list[dict]:
    """Trained parameters in two groups, of which that of matrices decays; none is empty."""
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [(n, p) for n, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

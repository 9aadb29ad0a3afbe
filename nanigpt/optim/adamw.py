"""AdamW with weight decay on matrices only."""

from collections.abc import Iterable
from typing import Annotated, Any

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
    """AdamW (Loshchilov and Hutter, 2019) on matrices; all else is not decayed.

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
    """Trained parameters, those that decay and those that do not, of each device mesh.

    Matrices and stacks of them decay, gains and biases do not. Parameters of a group are updated
    by one kernel, which DTensors of several meshes cannot share.
    """
    groups: dict[tuple[bool, Any], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2].startswith("bias")  # those of experts are stacked
            decays = parameter.ndim >= 2 and not is_bias
            key = (decays, getattr(parameter, "device_mesh", None))
            groups.setdefault(key, []).append((name, parameter))
    return [
        {"params": named, "weight_decay": weight_decay if decays else 0.0}
        for (decays, _), named in sorted(groups.items(), key=lambda item: not item[0][0])
    ]

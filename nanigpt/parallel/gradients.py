"""Gradients that are spread over ranks in different ways."""

from collections.abc import Collection, Iterable

import torch
from torch import distributed as dist
from torch import nn


def settle(parameters: Iterable[nn.Parameter]) -> None:
    """Sums gradients of which every rank of a DTensor's mesh has a part yet."""
    for parameter in parameters:
        gradient = parameter.grad
        if hasattr(gradient, "placements") and gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(placements=parameter.placements)


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    *,
    counted_elsewhere: Collection[nn.Parameter] = (),
    stages: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Scales gradients down to a global 2-norm of `max_norm`; returns the norm that they had.

    Args:
        counted_elsewhere: copies of parameters of another pipeline stage.
        stages: the ranks that have the other parameters.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    by_mesh: dict[object, list[torch.Tensor]] = {}
    for parameter in with_gradient:
        if not any(parameter is other for other in counted_elsewhere):
            mesh = getattr(parameter.grad, "device_mesh", None)
            by_mesh.setdefault(mesh, []).append(parameter.grad)
    norms = [torch.nn.utils.get_total_norm(gradients) for gradients in by_mesh.values()]
    # The norm of DTensors is one itself, summed over its mesh here.
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole))
    if stages is not None:
        squared = total.square()
        dist.all_reduce(squared, group=stages)
        total = squared.sqrt()
    torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, total)
    return total

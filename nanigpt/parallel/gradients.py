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
    # Gradients that are split over the same groups of ranks have one sum over them.
    split: dict[tuple[dist.ProcessGroup, ...], list[torch.Tensor]] = {}
    for parameter in with_gradient:
        if not any(parameter is other for other in counted_elsewhere):
            gradient = parameter.grad
            groups = tuple(
                gradient.device_mesh.get_group(axis)
                for axis, placement in enumerate(getattr(gradient, "placements", ()))
                if not placement.is_replicate()
            )
            split.setdefault(groups, []).append(getattr(gradient, "_local_tensor", gradient))
    squares = []
    for groups, gradients in split.items():
        squared = torch.nn.utils.get_total_norm(gradients).square()
        for group in groups:
            dist.all_reduce(squared, group=group)
        squares.append(squared)
    total = torch.stack(squares).sum()
    if stages is not None:
        dist.all_reduce(total, group=stages)
    total = total.sqrt()
    meshes: dict[object, list[nn.Parameter]] = {}
    for parameter in with_gradient:
        meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    for together in meshes.values():  # one kernel's DTensors are of one mesh
        torch.nn.utils.clip_grads_with_norm_(together, max_norm, total)
    return total

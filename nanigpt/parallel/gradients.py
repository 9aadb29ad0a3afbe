"""Gradients that are spread over ranks in different ways."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from nanigpt.parallel.mesh import Layout


def settle(
    parameters: Iterable[nn.Parameter],
    layout: Layout,
    *,
    partial: Iterable[nn.Parameter] = (),
) -> None:
    """Sum gradients where every rank still has only a part of the sum.

    Args:
        parameters: All parameters of this rank.
        layout: The place of this rank.
        partial: Parameters that are not DTensors over `tp`, but whose gradients are summed over it.
    """
    for parameter in parameters:
        gradient: Any = parameter.grad
        placements = getattr(parameter, "placements", None)
        if hasattr(gradient, "placements") and gradient.placements != placements:
            parameter.grad = gradient.redistribute(placements=placements)
    for parameter in partial:
        if parameter.grad is not None:
            dist.all_reduce(_local(parameter.grad), group=layout.along("tp").get_group())


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    layout: Layout,
    *,
    counted_elsewhere: Collection[nn.Parameter] = (),
) -> torch.Tensor:
    """Scale gradients down to a global 2-norm of `max_norm`, and return their original norm.

    Args:
        parameters: All parameters of this rank.
        max_norm: The largest norm that is not scaled.
        layout: The place of this rank.
        counted_elsewhere: Copies of parameters of another pipeline stage.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    total = torch.zeros((), device=layout.world.device)
    squares = []
    # Gradients that are split over the same axes are summed together over these axes. Names
    # identify axes, since groups and meshes may be equal to groups and meshes of an earlier set-up.
    split: dict[tuple[tuple[str, ...], tuple[str, ...]], list[torch.Tensor]] = {}
    for parameter in with_gradient:
        if not any(parameter is other for other in counted_elsewhere):
            split.setdefault(_axes(parameter.grad), []).append(_local(parameter.grad))
    for (axes, over), gradients in split.items():
        squared = torch.nn.utils.get_total_norm(gradients).square()
        for axis in over:
            dist.all_reduce(squared, group=layout.group(axes, axis))
        squares.append(squared)
    if squares:
        total = torch.stack(squares).sum()
    if layout.sizes["pp"] > 1:  # other stages have the other parameters
        dist.all_reduce(total, group=layout.along("pp").get_group())
    total = total.sqrt()
    meshes: dict[object, list[nn.Parameter]] = {}
    for parameter in with_gradient:
        meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    for together in meshes.values():  # all DTensors of one kernel need the same mesh
        torch.nn.utils.clip_grads_with_norm_(together, max_norm, total)
    return total


def _axes(gradient: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the axes of a gradient's mesh, and the axes along which ranks' parts differ."""
    if not hasattr(gradient, "placements"):
        return (), ()
    names = tuple(gradient.device_mesh.mesh_dim_names)
    placed = zip(names, gradient.placements, strict=True)
    return names, tuple(name for name, placement in placed if not placement.is_replicate())


def _local(gradient: Any) -> torch.Tensor:
    return getattr(gradient, "_local_tensor", gradient)

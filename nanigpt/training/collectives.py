"""Find the mesh axis of each collective.

A trace names the process groups of NCCL. Collectives over gloo get labels here.
"""

from typing import Any

import torch
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from nanigpt.parallel.mesh import Layout

LABEL = "communication"
"""The first word of a label. The axis, the bytes that the rank gives, and the operator follow."""

_LIBRARIES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


def axes_of_groups(layout: Layout) -> dict[str, str]:
    """Return the mesh axis that each process group serves, by the group's name.

    Several axes may share a group of all ranks; its axis is then `world`.
    """
    axes: dict[str, str] = {}
    for mesh in (layout.parameters, layout.context, layout.experts):
        if mesh is None:
            continue
        for axis in mesh.mesh_dim_names or ():
            if mesh[axis].size() > 1:
                name = mesh[axis].get_group().group_name
                axes[name] = axis if axes.get(name, axis) == axis else "world"
    if layout.losses is not None:
        axes.setdefault(layout.losses.get_group().group_name, "loss")
    return axes


class Labels(TorchDispatchMode):
    """Recorder of spans `communication AXIS BYTES OPERATOR` around calls of collectives.

    It inspects every operator, so computation takes longer while it is on.

    Args:
        axes: Axes by name of the process group.
    """

    def __init__(self, axes: dict[str, str]):
        super().__init__()
        self._axes = axes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(getattr(kind, "__name__", "") == "DTensor" for kind in types):
            return NotImplemented  # the operators inside this one come next
        if getattr(func, "namespace", None) not in _LIBRARIES:
            return func(*args, **kwargs)
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        group = _group_name(named)
        if group is None:  # not a collective itself, for example waiting for one
            return func(*args, **kwargs)
        axis = self._axes.get(group, "world")
        operator = func._schema.name.rpartition("::")[2].strip("_")
        with torch.profiler.record_function(f"{LABEL} {axis} {_bytes(operator, named)} {operator}"):
            return func(*args, **kwargs)


def _group_name(named: dict[str, Any]) -> str | None:
    group: Any = named.get("process_group", named.get("group_name"))
    if isinstance(group, torch.ScriptObject):
        group = dist.ProcessGroup.unbox(group)
    return getattr(group, "group_name", group)


def _bytes(operator: str, named: dict[str, Any]) -> int:
    """Return the bytes that the rank gives: inputs, and tensors that are both input and output."""
    if operator.startswith(("recv", "irecv")):
        return 0
    inputs = [value for name, value in named.items() if name.startswith(("input", "tensor"))]
    return sum(x.numel() * x.element_size() for x in _tensors(inputs))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, list | tuple) else []

"""Initial weights: distributions as nodes of the DAG, and giving memory to a meta-device model.

Modules are constructed on the meta device. `materialize` gives them memory after they were sharded,
and `initialize` fills it. Every parameter has a random stream of its own, seeded by the run's seed
and the parameter's name, so that weights depend on neither the mesh nor the other parameters.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn


class Initializer(Protocol):
    """Fills a weight in place from a random stream."""

    def __call__(self, weight: torch.Tensor, generator: torch.Generator) -> None: ...


class TruncatedNormal:
    """Normal with mean 0 and standard deviation `std`, cut at `cutoff` standard deviations."""

    def __init__(self, *, std: float, cutoff: float = 3.0):
        if std <= 0 or cutoff <= 0:
            raise ValueError(f"std={std}, cutoff={cutoff}: expected positive numbers")
        self.std = std
        self.cutoff = cutoff

    def __call__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        bound = self.cutoff * self.std
        nn.init.trunc_normal_(weight, std=self.std, a=-bound, b=bound, generator=generator)


class FanInNormal:
    """Truncated normal whose standard deviation is `scale / sqrt(fan_in)`, whatever the width.

    On inputs of unit variance the outputs have standard deviation `scale`. `fan_in` is the last
    dim of the weight (`[out, in]`).
    """

    def __init__(self, *, scale: float = 1.0, cutoff: float = 3.0):
        if scale <= 0 or cutoff <= 0:
            raise ValueError(f"scale={scale}, cutoff={cutoff}: expected positive numbers")
        self.scale = scale
        self.cutoff = cutoff

    def __call__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        std = self.scale / weight.shape[-1] ** 0.5
        TruncatedNormal(std=std, cutoff=self.cutoff)(weight, generator)


class Constant:
    """Every element is `value`."""

    def __init__(self, *, value: float):
        self.value = value

    def __call__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        weight.fill_(self.value)


def named_state(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """Yields (full name, owner, local name, tensor) of parameters and buffers, every alias."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield f"{prefix}.{local}" if prefix else local, module, local, tensor


def materialize(
    model: nn.Module, device: torch.device | str, *, parameters: torch.device | str | None = None
) -> None:
    """Gives every meta parameter and buffer uninitialised memory on `device`, in place.

    A tensor that stands under several names (a tied head) stays one tensor: upstream's `to_empty`
    makes a new one for each name.

    Args:
        parameters: where parameters are, if elsewhere.
    """
    first_of: dict[torch.Tensor, tuple[nn.Module, str]] = {}
    aliases = []
    for _, module, local, tensor in named_state(model):
        owner, name = first_of.setdefault(tensor, (module, local))
        if (owner, name) != (module, local):
            aliases.append((module, local, owner, name))
    model.to_empty(device=device if parameters is None else parameters)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and parameters is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    for module, local, owner, name in aliases:
        store = module._parameters if local in module._parameters else module._buffers
        store[local] = getattr(owner, name)


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int) -> None:
    """Fills every parameter from its own random stream, and computes every derived buffer.

    Modules with parameters name their initialisers in `initializers()`, by local name;
    modules with derived buffers (a RoPE table) recompute them in `reset_buffers()`. A DTensor
    gets its shard of what the whole parameter would be on one process.

    Raises:
        ValueError: a module owns a parameter and names no initialiser for it.
    """
    seen: set[torch.Tensor] = set()
    for name, module, local, tensor in named_state(model):
        if local not in module._parameters or tensor in seen:
            continue
        seen.add(tensor)
        initializers = module.initializers() if hasattr(module, "initializers") else {}
        if local not in initializers:
            raise ValueError(
                f"{name}: {type(module).__name__}.initializers() does not name {local!r}"
            )
        _fill(tensor, initializers[local], _stream_seed(seed, name))
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()


def _stream_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # a torch seed is a signed 64-bit number


def _fill(parameter: torch.Tensor, initializer: Initializer, stream_seed: int) -> None:
    generator = torch.Generator(parameter.device).manual_seed(stream_seed)
    if not hasattr(parameter, "placements"):  # an ordinary tensor
        initializer(parameter, generator)
        return
    from torch.distributed.tensor import distribute_tensor

    # Each rank draws the whole parameter and keeps its shard: no communication, and any mesh gets
    # the same numbers. One whole parameter at a time is held beside the shards.
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    initializer(whole, generator)
    shard = distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    parameter.to_local().copy_(shard.to_local())

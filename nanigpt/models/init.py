"""Initial weights: distributions as nodes of the DAG, and memory for a model on meta.

Modules are constructed on the meta device. `materialize` gives them memory after they were sharded,
and `initialize` fills it. Every parameter has its own random stream, seeded by the run's seed and
the parameter's name, so that weights depend on neither the mesh nor the other parameters.

A module gives values to its tensors in one of two ways:

    initializers()        returns an initializer for each of its own parameters, and
    reset_buffers()       computes its own buffers; or
    reset_parameters()    sets parameters and buffers of the module, and of those inside it, in
                          place (the convention of torch.nn)

`nanigpt.models.reset` runs the second kind.
"""

import hashlib
from typing import Any, Protocol

import torch
from torch import nn

from nanigpt.models.attributes import without_values
from nanigpt.models.parameters import named_state
from nanigpt.models.reset import Resets
from nanigpt.problems import Problem, refuse, require_finite, require_positive


class Initializer(Protocol):
    """Function that fills a weight in place from a random stream."""

    def __call__(self, weight: torch.Tensor, generator: torch.Generator, /) -> None: ...


class TruncatedNormal:
    """Normal distribution with mean 0, cut at `cutoff` standard deviations.

    Args:
        std: Standard deviation before the cut. After a cut at 3 it is 1.3% smaller.
    """

    def __init__(self, *, std: float, cutoff: float = 3.0):
        require_positive(std=std, cutoff=cutoff)
        self.std = std
        self.cutoff = cutoff

    def __call__(self, weight: torch.Tensor, generator: torch.Generator, /) -> None:
        bound = self.cutoff * self.std
        nn.init.trunc_normal_(weight, std=self.std, a=-bound, b=bound, generator=generator)


class FanInNormal:
    """Truncated normal whose standard deviation before the cut is `scale / sqrt(fan_in)`.

    `fan_in` is the last dim of the weight (`[out, in]`). On inputs of unit variance the outputs
    have standard deviation `scale`, less the 1.3% that a cut at 3 standard deviations takes.
    """

    def __init__(self, *, scale: float = 1.0, cutoff: float = 3.0):
        require_positive(scale=scale, cutoff=cutoff)
        self.scale = scale
        self.cutoff = cutoff

    def __call__(self, weight: torch.Tensor, generator: torch.Generator, /) -> None:
        std = self.scale / weight.shape[-1] ** 0.5
        TruncatedNormal(std=std, cutoff=self.cutoff)(weight, generator)


class Constant:
    """Initializer that sets every element to `value`."""

    def __init__(self, *, value: float):
        require_finite(value=value)
        self.value = value

    def __call__(self, weight: torch.Tensor, generator: torch.Generator, /) -> None:
        weight.fill_(self.value)


def materialize(
    model: nn.Module, device: torch.device | str, *, parameters: torch.device | str | None = None
) -> None:
    """Give every parameter and buffer uninitialised memory on `device`, in place.

    A tensor under several names (a tied head) stays one tensor: PyTorch's `to_empty` makes a new
    one for each name. Attributes that were set on a parameter stay, too.

    Args:
        parameters: Device of the parameters, if it is another one.
    """
    first_of: dict[torch.Tensor, tuple[nn.Module, str]] = {}
    aliases = []
    for _, module, local, tensor in named_state(model):
        owner, name = first_of.setdefault(tensor, (module, local))
        if (owner, name) != (module, local):
            aliases.append((module, local, owner, name))
    attributes = [(owner, name, tensor.__dict__) for tensor, (owner, name) in first_of.items()]
    model.to_empty(device=device if parameters is None else parameters)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and parameters is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    for owner, name, marks in attributes:
        getattr(owner, name).__dict__.update(marks)
    for module, local, owner, name in aliases:
        store = module._parameters if local in module._parameters else module._buffers
        store[local] = getattr(owner, name)


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int) -> None:
    """Fill every parameter from its own random stream, and compute every buffer.

    A DTensor gets its shard of the values that the whole parameter would have on one process.

    Raises:
        ComponentError: A parameter or buffer has no value (`uninitialized` names all of them).
    """
    resets = Resets(model)
    seen: set[torch.Tensor] = set()
    for name, module, local, tensor in named_state(model):
        if tensor in seen or local in module._buffers:
            continue
        seen.add(tensor)
        initializer = _initializer(module, local)
        stream_seed = _stream_seed(seed, name)
        if initializer is not None:
            _fill(tensor, initializer, stream_seed)
        elif resets.has(module):
            _copy(tensor, resets.value(module, local, stream_seed))
        else:
            refuse("", ..., _expected(module, local), component=module)
    computed = _with_computed_buffers(model)
    for name, module, local, tensor in named_state(model):
        if tensor not in seen and local in module._buffers and module not in computed:
            seen.add(tensor)
            tensor.copy_(resets.value(module, local, _stream_seed(seed, name)))
    for module in model.modules():
        reset_buffers: Any = getattr(module, "reset_buffers", None)
        if reset_buffers is not None:
            reset_buffers()


def uninitialized(model: nn.Module) -> list[Problem]:
    """Return a problem for every tensor of a model that no method gives a value."""
    found = [
        Problem("", ..., _expected_of_attribute(name), component=module)
        for module in model.modules()
        for name in without_values(module)
    ]
    resets = Resets(model)
    computed = _with_computed_buffers(model)
    seen = set()
    for _, module, local, tensor in named_state(model):
        if tensor in seen:
            continue
        seen.add(tensor)
        is_buffer = local in module._buffers
        said = module in computed if is_buffer else _initializer(module, local) is not None
        if not said and not resets.sets(module, local):
            found.append(Problem("", ..., _expected(module, local), component=module))
    return found


def _expected(module: nn.Module, local: str) -> str:
    if local in module._buffers:
        return f"reset_parameters() or reset_buffers() to give a value to the buffer {local!r}"
    return f"initializers() or reset_parameters() to give a value to the parameter {local!r}"


def _expected_of_attribute(name: str) -> str:
    return (
        f"a buffer {name!r} (register_buffer) and a reset_parameters() that gives it a value, not "
        "a plain attribute: the model is built on meta, where the tensor gets no value"
    )


def _initializer(module: nn.Module, local: str) -> Initializer | None:
    named = getattr(module, "initializers", None)
    return None if named is None else named().get(local)


def _with_computed_buffers(model: nn.Module) -> set[nn.Module]:
    """Return the modules whose buffers are computed by their own or an outer `reset_buffers`."""
    computing = (module for module in model.modules() if hasattr(module, "reset_buffers"))
    return {below for module in computing for below in module.modules()}


def _stream_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # a torch seed is a signed 64-bit number


def _fill(parameter: torch.Tensor, initializer: Initializer, stream_seed: int) -> None:
    generator = torch.Generator(parameter.device).manual_seed(stream_seed)
    if not hasattr(parameter, "placements"):  # an ordinary tensor
        initializer(parameter, generator)
        return
    # Each rank draws the whole parameter and keeps its shard: no communication, and any mesh gets
    # the same numbers. One whole parameter at a time is held beside the shards.
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    initializer(whole, generator)
    _copy(parameter, whole)


def _copy(parameter: Any, whole: torch.Tensor) -> None:
    """Copy a whole value into a parameter, or this rank's part of it into a DTensor."""
    if not hasattr(parameter, "placements"):
        parameter.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    shard = distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )
    parameter.to_local().copy_(shard.to_local())

"""Count a model's parameters, and the FLOPs of its training.

A module that multiplies may declare its cost, which is exact and needs no forward pass:

    active_weights() -> int     weights that one token is multiplied with, in the module and below
    multiplies_below = True     the module's own forward multiplies nothing; its children declare it

A module that declares neither is measured: its forward and backward pass run on meta, and
`torch.utils.flop_counter` counts. A module with parameters that a token may skip, such as experts,
declares

    idle_parameters() -> int    parameters that one token does not use
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from nanigpt.models.declared import declared
from nanigpt.models.reset import on_meta

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class ParameterCounts:
    """Distinct parameters of a model: a weight under two names counts once.

    Attributes:
        total: All parameters.
        active: Parameters that one token uses: all except experts that it is not sent to. The
            embedding counts whole, as in the figures of Qwen3 (3.3 B of "30B-A3B") and Llama 4
            ("17B"); the figures of DeepSeek-V3 (36.6 B) and GPT-OSS (3.6 B) leave out `embedding`.
        embedding: Parameters of the look-up table.
        tied: Whether that table is also the output head.
        trainable: Parameters that training changes (`requires_grad`).
    """

    total: int
    active: int
    embedding: int
    tied: bool
    trainable: int

    def __str__(self) -> str:
        notes = [f"{self.active:,} active"] if self.active != self.total else []
        notes += [f"{self.trainable:,} trainable"] if self.trainable != self.total else []
        return f"{self.total:,} parameters" + (f" ({', '.join(notes)})" if notes else "")


def parameter_counts(
    model: nn.Module, embedding: nn.Module | None = None, head: nn.Module | None = None
) -> ParameterCounts:
    """Count the parameters of a model that is whole and unsharded."""
    table = set() if embedding is None else set(embedding.parameters())
    total = sum(p.numel() for p in model.parameters())
    return ParameterCounts(
        total=total,
        active=total - idle_parameters(model),
        embedding=sum(p.numel() for p in table),
        tied=head is not None and any(p in table for p in head.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def idle_parameters(module: nn.Module) -> int:
    """Return the number of parameters at or below a module that one token does not use."""
    own = getattr(module, "idle_parameters", None)
    return own() if own is not None else sum(idle_parameters(child) for child in module.children())


def active_weights(module: nn.Module) -> int:
    """Return the declared weights at or below a module that multiply a token."""
    return sum(said.active_weights() for said in _saying(module))


def declared_flops(module: nn.Module) -> int:
    """Return the training FLOPs per token of the declared weights at or below a module.

    A multiply-add is two FLOPs. The backward pass costs twice the forward; for frozen weights it
    costs as much as the forward, since no gradient of them is computed.
    """
    return sum(
        (6 if any(p.requires_grad for p in said.parameters()) else 4) * said.active_weights()
        for said in _saying(module)
    )


def undeclared(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules, from `module` down, whose multiplications are not declared."""
    if declared(module, "active_weights"):
        return
    if not (declared(module, "multiplies_below") or isinstance(module, _CONTAINERS)):
        yield module
        return
    for child in module.children():
        yield from undeclared(child)


def measured_flops(
    model: nn.Module, modules: Iterable[nn.Module], run: Callable[[], Any]
) -> dict[nn.Module, int]:
    """Run `model` on meta, and return the training FLOPs of each of some modules inside it.

    Args:
        run: Function that calls the model with inputs on meta. A module that is called several
            times counts for each call.
    """
    wanted = list(modules)
    calls: list[tuple[nn.Module, tuple, dict]] = []
    if not wanted:
        return {}
    with on_meta(model), _plain_attention(model), contextlib.ExitStack() as hooks:
        for module in wanted:
            handle = module.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((module, args, kwargs)),
                with_kwargs=True,
            )
            hooks.callback(handle.remove)
        with torch.no_grad():
            run()
        hooks.close()
        flops = dict.fromkeys(wanted, 0)
        for module, args, kwargs in calls:
            flops[module] += _measure(module, args, kwargs)
    return flops


def training_flops(model: nn.Module, call: Callable[[nn.Module], torch.Tensor]) -> int:
    """Count the FLOPs of matrix products in a forward and backward pass of a model, on meta.

    Args:
        call: Function that runs the forward pass with inputs on meta, and returns the tensor to
            differentiate.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with on_meta(model), torch.enable_grad(), counter, torch.device("meta"):
        call(model).sum().backward()
    return counter.get_total_flops()


def _measure(module: nn.Module, args: tuple, kwargs: dict) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    def leaf(x: Any) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        return x.detach().requires_grad_()

    args, kwargs = tree_map(leaf, (args, kwargs))
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        outputs = tree_leaves(module(*args, **kwargs))
        learned = [y for y in outputs if isinstance(y, torch.Tensor) and y.requires_grad]
        if learned:
            torch.autograd.backward(learned, [torch.ones_like(y) for y in learned])
    return counter.get_total_flops()


@contextlib.contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Replace attention cores, some of which need a device, by one that runs on meta."""
    from nanigpt.models.attention_core import ScaledDotProduct

    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "core")]
    cores = [(module, module.core) for module in attentions]
    for module, _ in cores:
        module.core = ScaledDotProduct()
    try:
        yield
    finally:
        for module, core in cores:
            module.core = core


def _saying(module: nn.Module) -> Iterator[Any]:
    """Yield the outermost modules, from `module` down, whose multiplications are declared."""
    if declared(module, "active_weights"):
        yield module
    elif declared(module, "multiplies_below") or isinstance(module, _CONTAINERS):
        for child in module.children():
            yield from _saying(child)

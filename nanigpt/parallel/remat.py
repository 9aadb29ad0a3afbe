"""Activation recomputation: the backward pass computes activations again instead of keeping them.

Each layer declares its mode (`activation_checkpointing`, tag ActivationCheckpointing). This module
defines the modes, for all models:

    none       every activation is kept
    full       the block's input and the choice of experts are kept (Chen et al., 2016)
    selective  results that are costly to compute again are kept: attention, some matrix products,
               all products of experts, the choice of experts, and results of communication
               (Korthikanti et al., 2022)
    budget     the compiler chooses activations to keep, within a share of the memory that it would
               use by itself
"""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import traceback
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.protocol import blocks_here, body, recomputation
from nanigpt.parallel.plan import Plan
from nanigpt.problems import Fix, Problem, refuse

# Operators have names here, since some are registered only after the import of their package.
PRODUCTS = ("aten.mm", "aten.addmm", "aten.linear", "aten._scaled_mm", "aten._scaled_mm_v2")
GROUPED_PRODUCTS = ("aten._grouped_mm", "aten._scaled_grouped_mm", "aten._scaled_grouped_mm_v2")
ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_attention_math",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
    "torch_attn._varlen_attn_out",
    "flex_attention",
    "inductor_compiled_code",
)
COMMUNICATION = (
    *("_c10d_functional.reduce_scatter_tensor", "_c10d_functional_autograd.reduce_scatter_tensor"),
    *("_c10d_functional.all_to_all_single", "_c10d_functional_autograd.all_to_all_single"),
    "_c10d_functional.all_reduce",
    *("deepep.dispatch", "deepep.combine", "hybridep.dispatch", "hybridep.combine"),
)
# A slightly different score could send a token to another expert, and a slightly different scale
# could give another float8 number. Numbers that the host waited for are kept, to wait only once.
SMALL = ("aten.topk", "aten.max.default", "aten.amax.default", "aten._local_scalar_dense")

MODULE = "nanigpt.module"
"""Key under which operators are annotated with the name of their module within the block."""


class Recomputation:
    """A policy of recomputation for layers with mode `selective` or `budget`.

    Args:
        save_every: Which matrix products of a selective layer are kept, in the order of its forward
            pass: the first one, and then each `save_every`-th. 1 keeps all products, 2 keeps every
            other product. Products of experts are all kept, and not counted.
        recomputed: Names of modules of selective layers, such as `layers[0].attention.wk`, or
            patterns of names, such as `layers[*].feed_forward`. The products of these modules, and
            of modules within them, are computed again with any `save_every`.
        budget: Share of activation memory, from 0 to 1, that the compiler may use in layers with
            mode `budget`. 1 is the memory that it would use by itself.

    Raises:
        ValueError: `save_every` or `budget` is out of range.
    """

    may_change_on_resume = True

    def __init__(self, *, save_every: int = 2, recomputed: Sequence[str] = (), budget: float = 0.5):
        if save_every < 1:
            refuse("save_every", save_every, "at least 1")
        if not 0 <= budget <= 1:
            refuse("budget", budget, "a share from 0 to 1")
        self.save_every = save_every
        self.recomputed = recomputed
        self.budget = budget

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why layers of `model` cannot recompute activations in their modes."""
        found = []
        selective = []
        for name, block in _blocks(model):
            mode = recomputation(block)
            if mode == "budget" and not plan.compiled:
                expected = "'selective' without a compiler, because only compilers support a budget"
                fix = Fix(block, "activation_checkpointing", "selective")
                found.append(Problem("activation_checkpointing", mode, expected, fix, block))
            elif mode == "selective":
                selective.append(name)
        products = [name for name, _ in _products(model)]
        for pattern in self.recomputed:
            if not any(_within(pattern, name) for name, _ in model.named_modules()):
                expected = "names of modules as `show` prints them, or patterns of names"
            elif not any(_within(pattern, name) for name in products):
                expected = "modules with a matrix product"
            elif not any(_within(pattern, p) for b in selective for p in products if _in(p, b)):
                expected = "modules of layers with activation_checkpointing='selective'"
            else:
                continue
            found.append(Problem("recomputed", pattern, expected))
        return found

    def apply(
        self,
        model: nn.Module,
        compile: Callable[[nn.Module], None] | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """Replace the computation of blocks, in place.

        Args:
            model: The model.
            compile: Function that compiles a model in place. The compiler sees which results are
                kept.
            lasting: Whether the backward pass is split into several passes, which all read the
                kept results.
        """
        # In compiled code, torch 2.13 mistakes the meshes of DTensors for the state of random
        # numbers. It keeps this state for attention that is computed again, even if attention uses
        # no random numbers. Such blocks are compiled first, and their compiled code is run again.
        outside = [
            block
            for _, block in _blocks(model)
            if compile and recomputation(block) == "full" and _has_dtensors(block)
        ]
        for name, block in _blocks(model):
            if recomputation(block) == "full" and block not in outside:
                _recompute(block, lasting)
            elif recomputation(block) == "selective":
                self._select(block, name, lasting)
        if compile is not None:
            compile(model)
        for block in outside:
            _recompute(block, lasting)

    def _select(self, block: nn.Module, name: str, lasting: bool) -> None:
        experts, again = [], []
        for inner, module in _products(block):
            if any(_within(pattern, f"{name}.{inner}") for pattern in self.recomputed):
                again.append(inner)
            if isinstance(module, Experts):
                experts.append(inner)
            if inner in (*again, *experts):
                _annotate(module, inner)
        kept = contexts(lasting, self.save_every, tuple(again), tuple(experts))
        setattr(block, body(block), _recomputing(getattr(block, body(block)), kept))


@functools.cache
def contexts(
    lasting: bool,
    save_every: int | None = None,
    again: tuple[str, ...] = (),
    experts: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Return the function that gives `torch.utils.checkpoint` its two contexts.

    Blocks with the same arguments get the same object, so that one compilation serves them. Caches
    of compiled code identify it by its `cache_hash`.

    Args:
        lasting: Whether several backward passes read the kept results.
        save_every: See `Recomputation`. None keeps only the choice of experts.
        again: Names, within the block, of modules whose products are computed again.
        experts: Names of modules whose products are kept and not counted.
    """
    if save_every is not None:
        _kept()  # imports now, not in a step
    made: Any = functools.partial(_contexts, lasting, save_every, again, experts)
    told = f"{made.args} {torch.__version__}".encode()
    made.cache_hash = hashlib.sha256(Path(__file__).read_bytes() + told).hexdigest()
    return made


def _contexts(
    lasting: bool, save_every: int | None, again: tuple[str, ...], experts: tuple[str, ...]
) -> tuple[Any, Any]:
    choices = [torch.ops.aten.topk.default]
    policy = choices if save_every is None else _Policy(save_every, again, experts)
    made = create_selective_checkpoint_contexts(policy)
    if lasting:
        storage: defaultdict[Any, dict[Any, Any]] = defaultdict(_Lasting)
        for mode in made:
            mode.storage = storage
    return made


class _Lasting(dict[Any, Any]):
    """Results that stay after a read. PyTorch would replace them by a note of the read."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.setdefault(key, value)


class _Policy:
    """The choice of results to keep in one forward pass of a block."""

    def __init__(self, save_every: int, again: tuple[str, ...], experts: tuple[str, ...]):
        self.save_every = save_every
        self.again = again
        self.experts = experts
        self.counts: Counter[bool] = Counter()

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name, save = _named(op)
        if op is torch.ops.aten._to_copy.default:
            save = _goes_to_host(args, kwargs)
        if name in PRODUCTS or name in GROUPED_PRODUCTS:
            module = traceback.current_meta.get("custom", {}).get(MODULE)
            if module not in self.experts and name in PRODUCTS:
                # Some versions of torch call the policy again when they recompute.
                save = self.counts[context.is_recompute] % self.save_every == 0
                self.counts[context.is_recompute] += 1
            if module in self.again:
                return CheckpointPolicy.MUST_RECOMPUTE
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept() -> frozenset[str]:
    """Return the names of operators whose results are kept."""
    from torch._functorch.partitioners import get_default_op_list

    costly = map(str, get_default_op_list().compute_intensive_ops)
    return frozenset([*costly, *PRODUCTS, *GROUPED_PRODUCTS, *ATTENTION, *COMMUNICATION, *SMALL])


@functools.cache  # called for each operator that runs
def _named(op: Any) -> tuple[str, bool]:
    """Return an operator's name without the overload, and whether its results are kept."""
    name = str(getattr(op, "overloadpacket", op))
    return name, name in _kept() or str(op) in _kept()


def _goes_to_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs.get("device") is None:
        return False
    return torch.device(kwargs["device"]).type == "cpu" and args[0].device.type != "cpu"


def _recompute(block: nn.Module, lasting: bool) -> None:
    """Make a block recompute everything except the choice of experts."""
    routed = any(isinstance(module, MixtureOfExperts) for module in block.modules())
    kept = contexts(lasting) if routed else None
    setattr(block, body(block), _recomputing(getattr(block, body(block)), kept))


def _recomputing(
    compute: Callable[..., Any], context_fn: Callable[..., Any] | None
) -> Callable[..., Any]:
    # No block uses random numbers of torch's own generator.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if context_fn is not None:
        options["context_fn"] = context_fn

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, **options, **kwargs)

    return recomputing


def _annotate(module: nn.Module, name: str) -> None:
    """Annotate the operators of a module with `name`, also for a compiler."""
    forward = module.forward

    def annotated(*args: Any, **kwargs: Any) -> Any:
        with traceback.annotate({MODULE: name}):
            return forward(*args, **kwargs)

    module.forward = annotated


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and blocks of this rank."""
    here = blocks_here(model)
    for name, module in model.named_modules():
        if any(module is block for block in here):
            yield name, module


def _products(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and modules that multiply by their own weights."""

    def multiplies(module: nn.Module) -> bool:
        own = [p for p in module._parameters.values() if p is not None]
        return hasattr(module, "active_weights") or any(p.ndim > 1 for p in own)

    found = [(n, m) for n, m in module.named_modules() if multiplies(m) or isinstance(m, Experts)]
    return [(n, m) for n, m in found if not any(o != n and _in(o, n) for o, _ in found)]


def _in(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.") or not outer


def _within(pattern: str, name: str) -> bool:
    """Return whether the pattern matches `name`, or a module that contains it."""
    wanted = pattern.removeprefix("model.").replace("[", ".").replace("]", "").split(".")
    parts = name.split(".")
    return len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))


def _has_dtensors(block: nn.Module) -> bool:
    return any(hasattr(parameter, "placements") for parameter in block.parameters())

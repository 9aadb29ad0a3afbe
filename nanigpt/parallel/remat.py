"""Activation recomputation: what a layer's backward pass computes again instead of keeping.

Which mode a layer has, the layer says (`activation_checkpointing`, tag ActivationCheckpointing);
what modes do is said here, for all models:

    none       every activation is kept
    full       the block's input is kept, and the choice of experts (Chen et al., 2016)
    selective  what is costly to compute again is kept: attention, some of the matrix products, all
               of experts, their choice, and what came from other ranks (Korthikanti et al., 2022)
    budget     the compiler chooses what is kept, within a share of what it would keep by itself
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

# Operators by name, since some are registered only where a package of theirs is imported.
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
# A score that came out a bit different could send a token to another expert, and a scale a bit
# different another float8 number; a number that the host waited for is not waited for again.
SMALL = ("aten.topk", "aten.max.default", "aten.amax.default", "aten._local_scalar_dense")

MODULE = "nanigpt.module"
"""What operators of a module are annotated with: its name within the block."""


class Recomputation:
    """What is recomputed of layers that are `selective`, or have a `budget`.

    Args:
        save_every: of the matrix products of a selective layer, in the order of its forward pass,
            the first is kept and then every so many-th: 1 keeps all, 2 every other. Those of
            experts are all kept, and not counted.
        recomputed: names of modules of selective layers, such as `layers[0].attention.wk`, or
            patterns of names, such as `layers[*].feed_forward`: their products, and those of
            modules within them, are computed again whatever `save_every` is.
        budget: of the memory that the compiler would keep activations in by itself, the share that
            it may take in layers with mode `budget`: 0 to 1.

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
        """Return why layers of `model` cannot recompute what they should."""
        found = []
        selective = []
        for name, block in _blocks(model):
            mode = recomputation(block)
            if mode == "budget" and not plan.compiled:
                expected = "'selective' without a compiler, which is what keeps to a budget"
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
        """Exchanges what blocks compute, in place.

        Args:
            compile: exchanges it for compiled code, in which the compiler sees what is kept.
            lasting: the backward pass is split into several, which all read what was kept.
        """
        # In compiled code torch 2.13 mistakes the meshes of DTensors for the state of random
        # numbers, which it keeps for attention that is computed again, though it takes none. Such
        # blocks are compiled for themselves, and that is what is run again.
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

    Blocks that ask alike get one object, so that one compilation serves them; caches of compiled
    code know it by its `cache_hash`.

    Args:
        again: modules whose products are computed again, by their names within the block.
        experts: those whose products are kept and not counted.
    """
    if save_every is not None:
        _kept()  # what it imports is not imported in a step
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
    """Results that stay when they were read, instead of which upstream notes that they were."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.setdefault(key, value)


class _Policy:
    """What is kept of one forward pass of a block."""

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
                # Some versions of torch ask again when they recompute.
                save = self.counts[context.is_recompute] % self.save_every == 0
                self.counts[context.is_recompute] += 1
            if module in self.again:
                return CheckpointPolicy.MUST_RECOMPUTE
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept() -> frozenset[str]:
    """Operators whose results are kept."""
    from torch._functorch.partitioners import get_default_op_list

    costly = map(str, get_default_op_list().compute_intensive_ops)
    return frozenset([*costly, *PRODUCTS, *GROUPED_PRODUCTS, *ATTENTION, *COMMUNICATION, *SMALL])


@functools.cache  # it is asked for each operator that runs
def _named(op: Any) -> tuple[str, bool]:
    """Return an operator's name without the overload, and whether its results are kept."""
    name = str(getattr(op, "overloadpacket", op))
    return name, name in _kept() or str(op) in _kept()


def _goes_to_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs.get("device") is None:
        return False
    return torch.device(kwargs["device"]).type == "cpu" and args[0].device.type != "cpu"


def _recompute(block: nn.Module, lasting: bool) -> None:
    """Recompute all of a block, but for the choice of experts."""
    routed = any(isinstance(module, MixtureOfExperts) for module in block.modules())
    kept = contexts(lasting) if routed else None
    setattr(block, body(block), _recomputing(getattr(block, body(block)), kept))


def _recomputing(
    compute: Callable[..., Any], context_fn: Callable[..., Any] | None
) -> Callable[..., Any]:
    # Nothing in a block takes random numbers of torch's own generator.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if context_fn is not None:
        options["context_fn"] = context_fn

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, **options, **kwargs)

    return recomputing


def _annotate(module: nn.Module, name: str) -> None:
    """Operators of the module are known by `name`, also to a compiler."""
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
    """Return names and modules that multiply by weights of their own."""

    def multiplies(module: nn.Module) -> bool:
        own = [p for p in module._parameters.values() if p is not None]
        return hasattr(module, "active_weights") or any(p.ndim > 1 for p in own)

    found = [(n, m) for n, m in module.named_modules() if multiplies(m) or isinstance(m, Experts)]
    return [(n, m) for n, m in found if not any(o != n and _in(o, n) for o, _ in found)]


def _in(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.") or not outer


def _within(pattern: str, name: str) -> bool:
    """Whether the pattern is of `name`, or of a module that it is in."""
    wanted = pattern.removeprefix("model.").replace("[", ".").replace("]", "").split(".")
    parts = name.split(".")
    return len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))


def _has_dtensors(block: nn.Module) -> bool:
    return any(hasattr(parameter, "placements") for parameter in block.parameters())

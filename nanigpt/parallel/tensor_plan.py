"""Tensor-parallel plans: how each module is split, and which modules have no plan.

The class attribute `tensor_parallel` of a module declares how ranks of the axis `tp` share it. For
a plain module, which stays whole on every rank, it is one of two words:

    pointwise   The module gets a part of the sequence. Gradients of its weights are summed over
                `tp`.
    whole       The module gets the whole sequence on every rank. Gradients are equal and not
                summed.

For other modules, it is a dict from names of children, or "" for the module itself, to styles:

    own         The child has its own plan. A child without a plan is refused.
    positions   As own, for a child that knows positions and so is not pointwise.
    gather      The input is gathered along the sequence, once for all projections that read it.
    column      Each rank computes some outputs of a Linear.
    row         Each rank reads some inputs of a Linear. Sums go back to the sequence's shards.
    replicated  Every rank computes the same.
    shared      Every rank computes the same, and its heads read it. Gradients are summed.
    each_head   The rank's heads are computed with weights that every rank has. Gradients are
                summed.
    heads       Each rank has the weights of its heads.
    sequence    The sequence's shards are computed with weights that every rank has. Gradients are
                summed.
    vocabulary  Each rank has some rows of an Embedding.
    tokens      As sequence, for a router, whose results are plain tensors for the rank's tokens.
    experts     Inputs are gathered along the sequence, and sums go back to its shards.
                `nanigpt.parallel.expert` divides the weights.
    logits      Each rank computes some outputs of a head, which stay split for the loss.

(Shoeybi et al., 2019; sequence parallelism: Korthikanti et al., 2022.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from nanigpt.models.declared import declared
from nanigpt.words import one_of

PlainPlan = Literal["pointwise", "whole"]

STYLES = (
    *("own", "positions", "gather", "column", "row", "replicated", "shared", "each_head", "heads"),
    *("sequence", "vocabulary", "tokens", "experts", "logits"),
)

# A plain module can stand where activations on both sides are plain tensors.
_BETWEEN = (None, "own", "sequence", "vocabulary", "logits")

# Slot of a child without a style in its parent's plan, while activations inside are split.
_INSIDE = "inside"

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Part:
    """A module, with the style by which ranks share it.

    Attributes:
        name: Name of the module in the model.
        module: The module.
        style: One of `STYLES`, or `pointwise` or `whole`.
        slot: Style that the parent names for the module, or None.
    """

    name: str
    module: nn.Module
    style: str
    slot: str | None


@dataclass(frozen=True)
class Gap:
    """A module that ranks cannot share, with the reason.

    Attributes:
        name: Name of the module in the model.
        module: The module.
        expected: End of the sentence "expected ...".
    """

    name: str
    module: nn.Module
    expected: str


def parts(model: nn.Module) -> list[Part]:
    """Return every module that has its own style, by which ranks share it."""
    return [found for found in _walk(model) if isinstance(found, Part)]


def gaps(model: nn.Module) -> list[Gap]:
    """Return every module whose plan is missing, incomplete or wrong."""
    return [found for found in _walk(model) if isinstance(found, Gap)]


def plain_plan(module: nn.Module) -> str | None:
    """Return `pointwise` or `whole` if the module declares one of them, otherwise None."""
    plan = declared(module, "tensor_parallel")
    return plan if isinstance(plan, str) else None


def _walk(model: nn.Module) -> Iterator[Part | Gap]:
    met: set[int] = set()

    def walk(name: str, module: nn.Module, slot: str | None) -> Iterator[Part | Gap]:
        if id(module) in met:
            return
        met.add(id(module))
        plan = declared(module, "tensor_parallel")
        if isinstance(plan, str):
            yield _plain(name, module, plan, slot)
            return
        if plan is None and slot in (None, "own") and _says_nothing(module, slot):
            yield Gap(name, module, _MISSING)
            return
        if plan is None and slot == _INSIDE and any(True for _ in module.parameters()):
            yield Gap(name, module, "a style in the tensor_parallel of the module above it")
            return
        plan = plan or {}
        if wrong := _wrong_entry(module, plan):
            yield Gap(name, module, wrong)
            return
        style = plan.get("") if slot in (None, "own", _INSIDE) else slot
        buffers = [n for n, b in module._buffers.items() if b is not None]
        if style not in (None, "tokens", "experts") and buffers:
            expected = f"no buffer ({', '.join(buffers)}) in a module that is split by {style!r}"
            yield Gap(name, module, expected)
        elif style is not None:
            yield Part(name, module, style, slot)
        elif own := [n for n, p in module._parameters.items() if p is not None]:
            yield Gap(
                name, module, f"a style for its own {', '.join(own)}: tensor_parallel[''] has none"
            )
        for child, below in module.named_children():
            inside = _INSIDE if "" in plan else None
            inner, below_slot = f"{name}.{child}" if name else child, plan.get(child, inside)
            if below_slot == "positions":
                below_slot = "own"
                if plain_plan(below) == "pointwise":
                    yield Gap(inner, below, _KNOWS_POSITIONS)
                    continue
            yield from walk(inner, below, below_slot)

    yield from walk("", model, None)


_MISSING = (
    "a tensor_parallel plan: a class attribute that is 'pointwise', 'whole' or a dict of styles "
    "(nanigpt/parallel/tensor_plan.py)"
)


_KNOWS_POSITIONS = (
    "tensor_parallel='whole' for a module that knows positions, since a part of the sequence does "
    "not begin at position 0"
)


def _plain(name: str, module: nn.Module, plan: str, slot: str | None) -> Part | Gap:
    if plan not in get_args(PlainPlan):
        return Gap(name, module, f"tensor_parallel={plan!r} to be 'pointwise', 'whole' or a dict")
    if slot not in _BETWEEN:
        return Gap(
            name,
            module,
            f"no tensor_parallel={plan!r} inside of a module that splits its products by feature",
        )
    if plan == "pointwise" and getattr(module, "max_sequence_length", None) is not None:
        return Gap(name, module, _KNOWS_POSITIONS)
    if plan == "pointwise" and not name:
        return Gap(name, module, "tensor_parallel='whole' for a model, whose batches are whole")
    if plan == "pointwise" and slot == "logits":
        return Gap(name, module, "tensor_parallel='whole' for a head, whose labels are whole")
    return Part(name, module, plan, slot)


def _says_nothing(module: nn.Module, slot: str | None) -> bool:
    """Return whether a module without a plan needs one: it has weights, or its slot is `own`."""
    if isinstance(module, _CONTAINERS):
        return False
    return slot == "own" or next(module.parameters(), None) is not None


def _wrong_entry(module: nn.Module, plan: dict[str, str]) -> str | None:
    for child, style in plan.items():
        if style not in STYLES:
            return f"tensor_parallel[{child!r}]={style!r} to be {one_of(STYLES)}"
        if child and not hasattr(module, child):
            return f"tensor_parallel[{child!r}] to name a child, or '' for the module itself"
    return None

"""Tensor-parallel plans: which module is split how, and which modules say nothing.

A module says in its class attribute `tensor_parallel` how ranks of the axis `tp` share it. That is
one of two words for a plain module, which stays whole on every rank,

    pointwise   it gets a part of the sequence; gradients of its weights are summed over `tp`
    whole       it gets the whole sequence on every rank; gradients are equal and are not summed

or a dict from children, or "" for the module itself, to styles:

    own         the child says it itself; a child that says nothing is refused
    positions   as own, for a child that knows positions, which is not pointwise
    gather      the input is gathered along the sequence, once for all projections that read it
    column      a Linear of which each rank computes some outputs
    row         a Linear of which each rank reads some inputs; sums go back to the sequence's shards
    replicated  every rank computes the same
    shared      every rank computes the same, and its heads read it: gradients are summed
    each_head   the rank's heads with weights that every rank has: gradients are summed
    heads       each rank has the weights of its heads
    sequence    the sequence's shards with weights that every rank has: gradients are summed
    vocabulary  an Embedding of which each rank has some rows
    tokens      as sequence, for a router, whose results are plain tensors of the rank's tokens
    experts     inputs are gathered along the sequence, and sums go back to its shards;
                `nanigpt.parallel.expert` divides the weights
    logits      a head of which each rank has some outputs, which stay apart for the loss

(Shoeybi et al., 2019; sequence parallelism: Korthikanti et al., 2022.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from nanigpt.models.declared import declared

PlainPlan = Literal["pointwise", "whole"]

STYLES = (
    *("own", "positions", "gather", "column", "row", "replicated", "shared", "each_head", "heads"),
    *("sequence", "vocabulary", "tokens", "experts", "logits"),
)

# A plain module can stand where activations on both sides are plain tensors.
_BETWEEN = (None, "own", "sequence", "vocabulary", "logits")

# Slot of a child for which the plan of a module has no style, though activations inside are split.
_INSIDE = "inside"

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Part:
    """A module, and how ranks share it.

    Attributes:
        name: name of the module in the model.
        style: one of `STYLES`, or `pointwise` or `whole`.
        slot: the style that the parent names for the module, or None.
    """

    name: str
    module: nn.Module
    style: str
    slot: str | None


@dataclass(frozen=True)
class Gap:
    """A module that cannot be shared, and what is missing.

    Attributes:
        expected: end of the sentence "expected ...".
    """

    name: str
    module: nn.Module
    expected: str


def parts(model: nn.Module) -> list[Part]:
    """Return every module that ranks share by a style of its own."""
    return [found for found in _walk(model) if isinstance(found, Part)]


def gaps(model: nn.Module) -> list[Gap]:
    """Return every module whose plan is missing, incomplete or wrong."""
    return [found for found in _walk(model) if isinstance(found, Gap)]


def plain_plan(module: nn.Module) -> str | None:
    """Return `pointwise` or `whole` where the module says so."""
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
    """Whether a module without a plan needs one: it has weights, or its caller asks for a plan."""
    if isinstance(module, _CONTAINERS):
        return False
    return slot == "own" or next(module.parameters(), None) is not None


def _wrong_entry(module: nn.Module, plan: dict[str, str]) -> str | None:
    for child, style in plan.items():
        if style not in STYLES:
            return f"tensor_parallel[{child!r}]={style!r} to be one of {', '.join(STYLES)}"
        if child and not hasattr(module, child):
            return f"tensor_parallel[{child!r}] to name a child, or '' for the module itself"
    return None

"""Name float8 recipes, and check layers; `nanigpt.precision.float8` computes the recipes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from nanigpt.problems import Fix, refuse
from nanigpt.words import one_of

Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "mxfp8"]
ExpertRecipe = Literal["rowwise", "mxfp8"]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Returns y `[..., out]`, given x `[..., in]`, a weight `[out, in]` and a bias `[out]` or None."""


def multiple(recipe: str) -> int:
    """Return the number that divides all sizes: a block for mxfp8, 16 bytes for the others."""
    return 32 if recipe == "mxfp8" else 16


def check_recipe(recipe: str | None, recipes: Sequence[str], **sizes: int) -> None:
    """Raise a ComponentError if a layer has no such recipe, or its sizes do not fit it."""
    if recipe is None:
        return
    if recipe not in recipes:
        refuse("float8", recipe, f"None or {one_of(recipes)}")
    n = multiple(recipe)
    if any(size % n for size in sizes.values()):
        told = ", ".join(f"{name}={size}" for name, size in sizes.items())
        expected = f"None with {told}, or sizes that are multiples of {n}"
        refuse("float8", recipe, expected, Fix(None, "float8", None), given=tuple(sizes))


def unprepared(recipe: str) -> Any:
    """Return a product that refuses to compute, for a layer whose own product is not set yet."""

    def fail(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
        if x.is_meta:  # a check of shapes, which need no numbers
            return x.new_empty(*x.shape[:-1], weight.shape[-2])
        raise RuntimeError(
            f"float8={recipe!r}, but nothing computes it yet: call "
            "nanigpt.precision.float8.Float8(...).apply(model) first, as a Parallelizer does"
        )

    return fail


def ordinary(weight: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, in the same memory, without the wrapper that gathers in float8."""
    local: Any = getattr(weight, "_local_tensor", weight)
    if not hasattr(local, "fsdp_pre_all_gather"):
        return weight
    return with_local(weight, local._tensor)


def with_local(weight: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Return a DTensor like `weight` with `local` on this rank, or `local` if it is no DTensor."""
    if not isinstance(weight, DTensor):
        return local
    return DTensor.from_local(
        local,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )

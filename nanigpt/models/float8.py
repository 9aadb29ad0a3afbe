"""Float8 recipes by name, and what layers check of them; `nanigpt.precision.float8` computes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from nanigpt.problems import Fix, refuse

Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "mxfp8"]
ExpertRecipe = Literal["rowwise", "mxfp8"]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Of x `[..., in]`, a weight `[out, in]` and a bias `[out]` or None: y `[..., out]`."""


def multiple(recipe: str) -> int:
    """What sizes have to be multiples of: of mxfp8 a block, of others 16 bytes."""
    return 32 if recipe == "mxfp8" else 16


def check_recipe(recipe: str | None, recipes: Sequence[str], **sizes: int) -> None:
    """Raise a ComponentError where a layer has no such recipe, or its sizes do not fit it."""
    if recipe is None:
        return
    if recipe not in recipes:
        refuse("float8", recipe, f"None or one of {', '.join(recipes)}")
    n = multiple(recipe)
    if any(size % n for size in sizes.values()):
        told = ", ".join(f"{name}={size}" for name, size in sizes.items())
        expected = f"None with {told}, or sizes that are multiples of {n}"
        refuse("float8", recipe, expected, Fix(None, "float8", None), given=tuple(sizes))


def unprepared(recipe: str) -> Any:
    """The product of a layer that is called before it was given its own."""

    def fail(*_: Any) -> torch.Tensor:
        raise RuntimeError(
            f"float8={recipe!r}, but nothing computes it yet: call "
            "nanigpt.precision.float8.Float8(...).apply(model) first, as a Parallelizer does"
        )

    return fail


def ordinary(weight: torch.Tensor) -> torch.Tensor:
    """The same numbers, in the same memory, without what gathers them in float8."""
    local = getattr(weight, "_local_tensor", weight)
    if not hasattr(local, "fsdp_pre_all_gather"):
        return weight
    return with_local(weight, local._tensor)


def with_local(weight: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """`weight`, whose part on this rank is `local`; that itself where no DTensor is."""
    if not hasattr(weight, "placements"):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )

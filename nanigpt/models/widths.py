"""Sizes that modules declare, and checks that they fit together."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nanigpt.problems import Fix, Problem

# Plain modules of torch.nn have these names for our sizes.
_ALSO = {
    "in_dim": ("in_features",),
    "out_dim": ("out_features",),
    "dim": ("normalized_shape", "embedding_dim"),
    "vocab_size": ("num_embeddings",),
}


def size(module: nn.Module | None, name: str) -> int | None:
    """Return a size that a module declares, or None."""
    found = getattr(module, own_name(module, name), None)
    if isinstance(found, tuple) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, int) else None


def own_name(module: object, name: str) -> str:
    """Return the name that a module itself has for a size: `normalized_shape` for `dim`."""
    names = (name, *_ALSO.get(name, ()))
    return next((n for n in names if getattr(module, n, None) is not None), name)


def declared_sizes(modules: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that modules declare, by their paths: `{"wq.in_dim": wq}`."""
    found = (_named(path, module) for path, module in modules.items())
    return {path: declared for path, declared in found if declared is not None}


def misfits(
    expected: Mapping[str, tuple[Any, int | None]], given: Mapping[str, Any]
) -> list[Problem]:
    """Return a problem for each size that differs from the expected one.

    A size that a module does not declare (None) always fits, since `check` runs the module instead.

    Args:
        expected: The module, and the expected size, by the path of the size: `w1.in_dim`. A number
            may replace the module.
        given: Modules or numbers, by the path of the size, from which the expected sizes follow.
    """
    reasons = dict(_named(path, owner) for path, owner in given.items())
    why = ", ".join(f"{name}={value}" for name, value in reasons.items())
    found = ((*_named(path, owner), want) for path, (owner, want) in expected.items())
    return [
        Problem(name, got, f"{want} for {why}", Fix(None, name, want), given=tuple(reasons))
        for name, got, want in found
        if got is not None and want is not None and got != want
    ]


def _named(path: str, owner: Any) -> tuple[str, int | None]:
    """Return the path of a size, with the name that its module has for it, and the size."""
    if owner is None or isinstance(owner, int):
        return path, owner
    place, _, name = path.rpartition(".")
    return f"{place}.{own_name(owner, name)}", size(owner, name)

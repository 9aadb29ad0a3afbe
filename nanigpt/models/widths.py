"""Sizes that modules declare, and checks that they fit together."""

from collections.abc import Mapping

from torch import nn

from nanigpt.problems import Fix, Problem

# Plain modules of torch.nn have these names for our sizes.
_ALSO = {"in_dim": "in_features", "out_dim": "out_features", "dim": "normalized_shape"}


def size(module: nn.Module | None, name: str) -> int | None:
    """Return a size that a module declares, or None."""
    found = getattr(module, name, None)
    if found is None and name in _ALSO:
        found = getattr(module, _ALSO[name], None)
    if isinstance(found, tuple) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, int) else None


def misfits(
    expected: Mapping[str, tuple[int | None, int | None]], given: Mapping[str, int | None]
) -> list[Problem]:
    """Return a problem for each size that is not the expected one.

    A size that a module does not declare (None) always fits, since `check` runs the module instead.

    Args:
        expected: Pairs of a size and the expected size, by name.
        given: Arguments from which the expected sizes follow.
    """
    why = ", ".join(f"{name}={value}" for name, value in given.items())
    names = tuple(given)
    return [
        Problem(name, got, f"{want} for {why}", Fix(None, name, want), given=names)
        for name, (got, want) in expected.items()
        if got is not None and want is not None and got != want
    ]

"""Fiddlers that change the number formats of a run."""

from typing import get_args

import fiddle as fdl
from fiddle import selectors

from nanigpt.config.registry import fiddler
from nanigpt.errors import UsageError
from nanigpt.models.float8_recipe import ExpertRecipe, Recipe, multiple
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.precision.float8 import Float8
from nanigpt.training.trainer import Trainer


@fiddler
def float8(
    cfg: fdl.Config[Trainer],
    recipe: Recipe = "tensorwise",
    emulate: bool = False,
    head: bool = False,
    experts: bool = False,
) -> None:
    """Train projections in float8 if their sizes allow it.

    Args:
        cfg: The run. Its routers never change.
        recipe: Recipe of the scales.
        emulate: Round to float8 on any device, for tests.
        head: Also change the output head.
        experts: Also change the experts of mixtures.
    """
    if experts and recipe not in get_args(ExpertRecipe):
        raise UsageError(
            f"float8(recipe={recipe!r}, experts=True): experts support the recipes "
            f"{' and '.join(get_args(ExpertRecipe))}"
        )
    n = multiple(recipe)
    projections = [
        node
        for node in selectors.select(cfg.model, Linear, check_nonempty=False)
        if node is not cfg.model.head
    ]
    fitting = [node for node in projections if node.in_dim % n == 0 and node.out_dim % n == 0]
    if not fitting:
        raise UsageError(f"float8: no projection has sizes that are multiples of {n}")
    if head:
        fitting.append(_head(cfg, n))
    if experts:
        fitting += _experts(cfg, n)
    for node in fitting:
        node.float8 = recipe
    if cfg.parallelizer.float8 is None:
        cfg.parallelizer.float8 = fdl.Config(Float8)
    cfg.parallelizer.float8.emulate = emulate


def _head(cfg: fdl.Config[Trainer], n: int) -> fdl.Buildable:
    head = cfg.model.head
    if not issubclass(fdl.get_callable(head), Linear):
        raise UsageError("float8(head=True): the head has the embedding's weight, not its own")
    if head.in_dim % n or head.out_dim % n:
        raise UsageError(
            f"float8(head=True): model.head has in_dim={head.in_dim}, out_dim={head.out_dim}, "
            f"expected multiples of {n}"
        )
    return head


def _experts(cfg: fdl.Config[Trainer], n: int) -> list[fdl.Buildable]:
    found = list(selectors.select(cfg.model, Experts, check_nonempty=False))
    fitting = [node for node in found if node.dim % n == 0 and node.hidden_dim % n == 0]
    if not fitting:
        why = f"with widths that are multiples of {n}" if found else "at all"
        raise UsageError(f"float8(experts=True): the model has no experts {why}")
    return fitting

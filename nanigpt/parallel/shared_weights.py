"""Problems of weights that several layers share."""

from torch import nn

from nanigpt.models.protocol import blocks_here, shard_groups
from nanigpt.parallel.plan import Plan
from nanigpt.problems import Fix, Problem


def shared_weight_problems(model: nn.Module, plan: Plan) -> list[Problem]:
    """Return the reasons why weights that modules share cannot be sharded or pipelined.

    A head that is tied to the embedding is not a layer. `Decoder` and the pipeline support it.
    """
    found = []
    if plan.copies > 1:
        groups = [list(group) for group in shard_groups(model)]
        expected = (
            f"a separate node in each layer for dp_replicate x dp_shard x cp = {plan.copies}, "
            "because FSDP gathers a weight with one layer only"
        )
        fix = Fix(plan.mesh, "dp_shard", 1)
        found += _shared_between(groups, expected, fix)
    if plan.sizes["pp"] > 1:
        layers = [[block] for block in blocks_here(model)]
        expected = "a separate node in each layer for pp > 1, because ranks have different layers"
        found += _shared_between(layers, expected, Fix(plan.mesh, "pp", 1))
        if plan.splits_backward:
            found += _shared_within(layers, plan)
    return found


def _shared_between(groups: list[list[nn.Module]], expected: str, fix: Fix) -> list[Problem]:
    owners: dict[nn.Parameter, int] = {}
    found: dict[nn.Module, Problem] = {}
    for i, group in enumerate(groups):
        for root in group:
            for module in root.modules():
                for parameter in module._parameters.values():
                    if parameter is not None and owners.setdefault(parameter, i) != i:
                        found[module] = Problem("", ..., expected, fix, module)
    return list(found.values())


def _shared_within(layers: list[list[nn.Module]], plan: Plan) -> list[Problem]:
    expected = (
        "a schedule that computes the gradients of inputs and weights together, for a weight that "
        "a layer uses twice"
    )
    for (layer,) in layers:
        places = [p for m in layer.modules() for p in m._parameters.values() if p is not None]
        # A module in two places appears once in `modules()`, but has two names.
        names = [p for _, p in layer.named_parameters(remove_duplicate=False)]
        if len(places) > len(set(places)) or len(names) > len(set(names)):
            return [Problem("", ..., expected, Fix(plan.mesh, "pp", 1), layer)]
    return []

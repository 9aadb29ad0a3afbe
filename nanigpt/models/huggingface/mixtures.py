"""Conversion between config.json and our mixtures of experts, in parts that families share."""

from collections.abc import Collection, Mapping
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.fields import common, feed_forwards, of_kind
from nanigpt.models.moe.mixture import MixtureOfExperts


def mixtures_and_dense(
    model: Decoder,
) -> tuple[dict[int, MixtureOfExperts], dict[int, FeedForward]]:
    """Return the mixtures and the dense feed-forward networks, each by its layer's index.

    Raises:
        UsageError: A network is neither, or no layer has a mixture.
    """
    every = dict(enumerate(block.feed_forward for block in model.layers))
    mixtures = {i: m for i, m in every.items() if isinstance(m, MixtureOfExperts)}
    if not mixtures:
        raise UsageError("no layer has a mixture of experts")
    dense = {i: m for i, m in every.items() if i not in mixtures}
    of_kind(MixtureOfExperts, mixtures.values())
    return mixtures, dict(zip(dense, feed_forwards(dense.values()), strict=True))


def mixture_fields(
    mixtures: Mapping[int, MixtureOfExperts],
    *,
    n_experts: str,
    hidden_dim: str,
    activation: type,
    also: Mapping[str, Any],
    stated: Collection[str] = (),
) -> dict[str, Any]:
    """Return the fields for numbers and sizes of experts.

    Args:
        mixtures: Mixtures by the index of their layer.
        n_experts: Name of the field for the number of experts.
        hidden_dim: Name of the field for the width of an expert.
        activation: Class of the activation that all experts must have.
        also: Further attributes of router and experts that no field describes, and the values that
            they must have. By default a router must have no groups and no scale, and weights must
            multiply the outputs of experts.
        stated: Attributes that other fields of the family describe, so that any value will do.

    Raises:
        UsageError: A mixture has something else.
    """
    expected = {
        "router.scale": 1.0,
        "router.n_groups": 1,
        "experts.weighs": "outputs",
        **also,
    }
    for i, mixture in mixtures.items():
        for path, value in expected.items():
            if path in stated:
                continue
            part, name = path.split(".")
            found = getattr(getattr(mixture, part), name)
            if found != value:
                where = f"layers[{i}].feed_forward.{path}"
                raise UsageError(f"{where} is {found!r}: expected {value!r}")
    experts = [mixture.experts for mixture in mixtures.values()]
    feed_forwards(mixture.shared for mixture in mixtures.values() if mixture.shared is not None)
    of_kind(activation, (e.activation for e in experts))
    return {
        n_experts: common("experts.n_experts", [e.n_experts for e in experts]),
        hidden_dim: common("experts.hidden_dim", [e.hidden_dim for e in experts]),
        "num_experts_per_tok": common("router.top_k", [m.router.top_k for m in mixtures.values()]),
        "hidden_act": "silu",
    }

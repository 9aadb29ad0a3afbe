"""What families with mixtures of experts share between config.json and our modules."""

from collections.abc import Collection, Mapping
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.fields import alike, feed_forwards, of_kind
from nanigpt.models.moe.mixture import MixtureOfExperts


def mixtures_and_dense(
    model: Decoder,
) -> tuple[dict[int, MixtureOfExperts], dict[int, FeedForward]]:
    """Feed-forward networks by number of layer, those that are mixtures and the others.

    Raises:
        UsageError: one is neither, or no layer has a mixture.
    """
    every = dict(enumerate(block.feed_forward for block in model.layers))
    mixtures = {i: m for i, m in every.items() if isinstance(m, MixtureOfExperts)}
    if not mixtures:
        raise UsageError("no layer has a mixture of experts")
    dense = {i: m for i, m in every.items() if i not in mixtures}
    of_kind(MixtureOfExperts, mixtures.values())
    feed_forwards(dense.values())
    return mixtures, dense


def mixture_fields(
    mixtures: Mapping[int, MixtureOfExperts],
    *,
    n_experts: str,
    hidden_dim: str,
    activation: type,
    also: Mapping[str, Any],
    told: Collection[str] = (),
) -> dict[str, Any]:
    """Numbers and sizes of experts.

    Args:
        n_experts: the field for it, as is `hidden_dim`.
        activation: the class of the one that experts have.
        also: further attributes of router and experts, and what they must be, as no field says
            them. Unless it is here, or in `told`, a router has no groups and no scale, and weights
            multiply what comes out of experts.
        told: attributes that other fields of the family say.

    Raises:
        UsageError: a mixture has something else.
    """
    expected = {
        "router.scale": 1.0,
        "router.n_groups": 1,
        "experts.weighs": "outputs",
        **also,
    }
    for i, mixture in mixtures.items():
        for path, value in expected.items():
            if path in told:
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
        n_experts: alike("experts.n_experts", [e.n_experts for e in experts]),
        hidden_dim: alike("experts.hidden_dim", [e.hidden_dim for e in experts]),
        "num_experts_per_tok": alike("router.top_k", [m.router.top_k for m in mixtures.values()]),
        "hidden_act": "silu",
    }

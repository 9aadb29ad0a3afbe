"""The load of experts in a step, over all ranks, for balancing and for metrics.

Shapes: I layers, E experts.
"""

import torch
from torch import distributed as dist
from torch import nn

from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.protocol import blocks
from nanigpt.parallel.mesh import Layout


def most_experts(model: nn.Module) -> int:
    """Return the largest number of experts in any block, or 0 without a mixture."""
    return max((mixture.router.n_experts for mixture in _mixtures(model).values()), default=0)


@torch.no_grad()
def settle_load(
    model: nn.Module, layout: Layout, *, n_experts: int, sequence_parts: int
) -> dict[str, torch.Tensor]:
    """Move every router's `expert_bias` once, and reset the counts.

    Args:
        model: The layers of this rank.
        layout: The place of this rank.
        n_experts: The largest number of experts in any layer of any rank.
        sequence_parts: Number of ranks of tensor parallelism that see different tokens, or 1.

    Returns:
        tokens_per_expert: tokens_IE, with zeros where a layer has fewer experts, or none. Blocks
            that predict further tokens follow the layers.
        load_imbalance: Tokens of the busiest expert divided by the mean number of tokens of an
            expert. This is a mean over layers.
        router_entropy: Entropy of a token's normalised scores, in nats. This is a mean over tokens
            and layers.
        dropped_tokens: Number of choices that no expert has computed. It is always 0.
        expert_bias_range: Largest bias minus smallest bias. This is the maximum over layers.
    """
    # Each layer has a row: tokens of each expert, then entropy, tokens, choices, number of experts,
    # and range of the bias. Layers of other pipeline stages are zeros here. float64 counts to 2^53.
    counted = torch.zeros(
        len(blocks(model)), n_experts + 5, device=layout.world.device, dtype=torch.float64
    )
    mixtures = _mixtures(model)
    for i, mixture in mixtures.items():
        counted[i, : mixture.router.n_experts] = mixture.tokens_E.double()
        counted[i, n_experts] = mixture.entropy
        counted[i, n_experts + 1] = mixture.tokens
        counted[i, n_experts + 2] = mixture.tokens * mixture.router.top_k
    layout.sum(counted)
    if sequence_parts > 1:
        dist.all_reduce(counted, group=layout.along("tp").get_group())
    for i, mixture in mixtures.items():
        router = mixture.router
        router.balance(counted[i, : router.n_experts])
        mixture.reset_buffers()
        counted[i, n_experts + 3] = router.n_experts
        if router.expert_bias is not None:
            counted[i, n_experts + 4] = router.expert_bias.max() - router.expert_bias.min()
    if layout.sizes["pp"] > 1:
        dist.all_reduce(counted, group=layout.along("pp").get_group())
    return _told(counted, n_experts)


def forget_load(model: nn.Module) -> None:
    """Reset the counts after a forward pass that was not for training."""
    for mixture in _mixtures(model).values():
        mixture.reset_buffers()


def _mixtures(model: nn.Module) -> dict[int, MixtureOfExperts]:
    """Return the mixtures of this rank by the numbers of their blocks."""
    found = {}
    for i, block in enumerate(blocks(model)):
        below = [] if block is None else block.modules()
        mixture = next((m for m in below if isinstance(m, MixtureOfExperts)), None)
        if mixture is not None:
            found[i] = mixture
    return found


def _told(counted: torch.Tensor, n_experts: int) -> dict[str, torch.Tensor]:
    tokens_IE = counted[:, :n_experts]
    entropy_I, tokens_I, choices_I, experts_I, range_I = counted[:, n_experts:].unbind(1)
    is_mixture_I = (experts_I > 0).double()
    n_mixtures = is_mixture_I.sum()
    imbalance_I = tokens_IE.amax(1) * experts_I / choices_I.clamp(min=1)
    return {
        "tokens_per_expert": tokens_IE,
        "load_imbalance": (imbalance_I * is_mixture_I).sum() / n_mixtures,
        "router_entropy": (entropy_I / tokens_I.clamp(min=1)).sum() / n_mixtures,
        "dropped_tokens": (choices_I - tokens_IE.sum(1)).sum(),
        "expert_bias_range": range_I.amax(),
    }

"""A mixture of experts as the feed-forward network of a block.

Shapes: B batch, L sequence, D dim, E experts, N experts of a token.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from nanigpt.models.counts import active_weights
from nanigpt.models.moe.dispatch import count
from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.router import Router
from nanigpt.models.widths import misfits
from nanigpt.problems import refuse_all


class Load(NamedTuple):
    """The load of the experts in a forward pass.

    Attributes:
        tokens_E: Tokens of each expert. A token with several experts counts for each.
        entropy: Sum over tokens of the entropy of their normalized scores, in nats.
        tokens: Number of tokens.
    """

    tokens_E: torch.Tensor
    entropy: torch.Tensor
    tokens: torch.Tensor


class MixtureOfExperts(nn.Module):
    """Feed-forward network of experts that a router chooses for each token, and a shared expert.

    (Shazeer et al., 2017; shared experts: DeepSeekMoE, 2024.)

    Args:
        router: Chooses the experts of a token and their weights.
        experts: The experts.
        shared: Network that every token also goes through, or None.

    Attributes:
        tokens_E: Sum of `Load.tokens_E` over forward passes, until `reset_buffers`.
        entropy: Sum of `Load.entropy`.
        tokens: Sum of `Load.tokens`.
    """

    tensor_parallel = {"router": "tokens", "shared": "own"}
    tokens_E: torch.Tensor
    entropy: torch.Tensor
    tokens: torch.Tensor

    def __init__(self, *, router: Router, experts: Experts, shared: nn.Module | None = None):
        super().__init__()
        expected: dict[str, tuple[Any, int]] = {
            "experts.n_experts": (experts, router.n_experts),
            "experts.dim": (experts, router.dim),
        }
        if shared is not None:
            expected["shared.dim"] = (shared, router.dim)
        sizes = {"router.n_experts": router.n_experts, "router.dim": router.dim}
        refuse_all(misfits(expected, sizes))
        self.router = router
        self.experts = experts
        self.shared = shared
        for name, shape in {"tokens_E": (experts.n_experts,), "entropy": (), "tokens": ()}.items():
            self.register_buffer(name, torch.empty(shape, device="meta"), persistent=False)

    @property
    def dim(self) -> int:
        """Return the number of features of a token."""
        return self.router.dim

    def reset_buffers(self) -> None:
        """Set the sums to zero."""
        for buffer in (self.tokens_E, self.entropy, self.tokens):
            buffer.zero_()

    def active_weights(self) -> int:
        """Return the number of weights that one token is multiplied with, in router and experts."""
        chosen = self.router.top_k * 3 * self.experts.dim * self.experts.hidden_dim
        shared = 0 if self.shared is None else active_weights(self.shared)
        return active_weights(self.router) + chosen + shared

    def idle_parameters(self) -> int:
        """Return the number of parameters in experts that one token does not go through."""
        each = sum(p.numel() for p in self.experts.parameters()) // self.experts.n_experts
        return each * (self.experts.n_experts - self.router.top_k)

    def forward(self, x_BLD: torch.Tensor) -> tuple[torch.Tensor, Load]:
        """Return out_BLD and the load, which the caller hands to `add_load`.

        The load is not added here, since the backward pass may run the forward pass again.
        """
        weights_BLN, experts_BLN, scores_BLE = self.router(x_BLD)
        out_BLD = self.experts(x_BLD, weights_BLN, experts_BLN)
        if self.shared is not None:
            out_BLD = out_BLD + self.shared(x_BLD)
        return out_BLD, _load(scores_BLE.detach(), count(experts_BLN, self.router.n_experts))

    @torch.no_grad()
    def add_load(self, load: Load) -> None:
        """Add the load of a forward pass to the sums."""
        self.tokens_E += load.tokens_E
        self.entropy += load.entropy
        self.tokens += load.tokens


def _load(scores_BLE: torch.Tensor, tokens_E: torch.Tensor) -> Load:
    share_BLE = scores_BLE / scores_BLE.sum(-1, keepdim=True)
    entropy = -torch.xlogy(share_BLE, share_BLE).sum()
    tokens = torch.full_like(entropy, scores_BLE.shape[0] * scores_BLE.shape[1])
    return Load(tokens_E, entropy, tokens)

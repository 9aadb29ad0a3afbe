"""The router, which chooses the experts of a token and their weights.

Shapes: B batch, L sequence, D dim, E experts, N experts of a token, J groups of experts.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.init import Initializer
from nanigpt.problems import refuse, require_choice, require_positive

Scores = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """The experts of each token.

    Attributes:
        weights_BLN: Weights of a token's experts (float32).
        experts_BLN: Indices of those experts in the same order, which may be any order.
        scores_BLE: Scores of all experts.
    """

    weights_BLN: torch.Tensor
    experts_BLN: torch.Tensor
    scores_BLE: torch.Tensor


class Router(nn.Module):
    """A linear layer in float32; its `top_k` highest scores choose the experts and their weights.

    Args:
        dim: Features of a token.
        n_experts: Number of experts.
        top_k: Number of a token's experts.
        initializer: Initializer of the weight.
        scores: Whether scores are a `softmax` over all experts, or a `sigmoid` of each.
        normalize: Whether the weights of a token's experts are divided by their sum.
        scale: Factor of the weights.
        n_groups: Groups of neighbouring experts, such as those of one machine. A token goes only to
            the `top_groups` groups whose two best experts have the highest scores (DeepSeek-V3,
            2024, 2.1.2).
        top_groups: Groups of a token, at most `n_groups`.
        bias: Initializer of a learned bias of the scores, or None for no bias.
        balance_rate: Step by which each optimizer step raises the bias of experts that had fewer
            tokens than the mean, and lowers that of experts that had more. The bias changes the
            choice of experts, not their weights (Wang et al., 2024, auxiliary-loss-free load
            balancing). None means that there is no such bias.

    Attributes:
        expert_bias: The bias that `balance_rate` moves, a persistent buffer of float32, or None.
        local: Function that returns the logits of this rank's tokens.
    """

    def __init__(
        self,
        *,
        dim: Annotated[int, tags.Width],
        n_experts: int,
        top_k: int,
        initializer: Annotated[Initializer, tags.Initializer],
        scores: Scores = "softmax",
        normalize: bool = False,
        scale: float = 1.0,
        n_groups: int = 1,
        top_groups: int = 1,
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        balance_rate: Annotated[float | None, tags.BalanceRate] = None,
    ):
        super().__init__()
        require_choice(get_args(Scores), scores=scores)
        if not 1 <= top_k <= n_experts:
            refuse("top_k", top_k, f"1 to n_experts={n_experts}", given=("n_experts",))
        if n_groups < 1 or n_experts % n_groups:
            refuse(
                "n_groups", n_groups, f"a divisor of n_experts={n_experts}", given=("n_experts",)
            )
        if not 1 <= top_groups <= n_groups:
            refuse("top_groups", top_groups, f"1 to n_groups={n_groups}", given=("n_groups",))
        if n_groups > 1 and n_experts // n_groups < 2:
            expected = f"groups of at least two of n_experts={n_experts}"
            refuse("n_groups", n_groups, expected, given=("n_experts",))
        if n_groups > 1 and top_groups * n_experts < top_k * n_groups:
            expected = f"groups that hold top_k={top_k} of n_experts={n_experts}"
            refuse("top_groups", top_groups, expected, given=("top_k", "n_experts", "n_groups"))
        require_positive(scale=scale)
        if balance_rate is not None and not 0 < balance_rate < float("inf"):
            refuse("balance_rate", balance_rate, "a positive number, or None")
        self.dim = dim
        self.n_experts = n_experts
        self.top_k = top_k
        self.initializer = initializer
        self.scores = scores
        self.normalize = normalize
        self.scale = scale
        self.n_groups = n_groups
        self.top_groups = top_groups
        self.balance_rate = balance_rate
        self.local: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits
        self.weight = nn.Parameter(torch.empty(n_experts, dim, device="meta"))
        self.bias_initializer = bias
        self.bias = None if bias is None else nn.Parameter(torch.empty(n_experts, device="meta"))
        self.expert_bias: torch.Tensor | None
        balance = None if balance_rate is None else torch.empty(n_experts, device="meta")
        self.register_buffer("expert_bias", balance)

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {"weight": self.initializer, "bias": self.bias_initializer}

    def reset_buffers(self) -> None:
        """Set the balancing bias to zero."""
        if self.expert_bias is not None:
            self.expert_bias.zero_()

    def active_weights(self) -> int:
        """Return the number of weights that one token is multiplied with."""
        return self.dim * self.n_experts

    def forward(self, x_BLD: torch.Tensor) -> Routing:
        """Return weights, experts and scores of each token."""
        # The weights are rounded like those of all matrices, since FSDP gathers them rounded. The
        # results are not.
        weight_ED = self.weight.to(x_BLD.dtype).float()
        bias_E = None if self.bias is None else self.bias.to(x_BLD.dtype).float()
        logits_BLE = self.local(F.linear(x_BLD.float(), weight_ED, bias_E))
        scores_BLE = logits_BLE.softmax(-1) if self.scores == "softmax" else logits_BLE.sigmoid()
        experts_BLN = self._choose(scores_BLE.detach())
        weights_BLN = scores_BLE.gather(-1, experts_BLN)
        if self.normalize:
            weights_BLN = weights_BLN / (weights_BLN.sum(-1, keepdim=True) + 1e-20)
        return Routing(weights_BLN * self.scale, experts_BLN, scores_BLE)

    def _choose(self, scores_BLE: torch.Tensor) -> torch.Tensor:
        if self.expert_bias is not None:
            scores_BLE = scores_BLE + self.expert_bias
        if self.n_groups > 1:
            scores_BLJE = scores_BLE.unflatten(-1, (self.n_groups, -1))
            best_BLJ = scores_BLJE.topk(2, dim=-1).values.sum(-1)
            chosen_BLJ = best_BLJ.topk(self.top_groups, dim=-1).indices
            hidden_BLJ = torch.ones_like(best_BLJ, dtype=torch.bool).scatter(-1, chosen_BLJ, False)
            scores_BLE = scores_BLJE.masked_fill(hidden_BLJ.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores_BLE.topk(self.top_k, dim=-1).indices

    @torch.no_grad()
    def balance(self, tokens_E: torch.Tensor) -> None:
        """Move `expert_bias` by one `balance_rate`.

        Args:
            tokens_E: Tokens of each expert in the step, over all ranks.
        """
        if self.expert_bias is not None and self.balance_rate is not None:
            self.expert_bias += self.balance_rate * (tokens_E.mean() - tokens_E).sign()

    def extra_repr(self) -> str:
        chosen = f"{self.top_k} of {self.n_experts} experts by {self.scores}"
        if self.n_groups > 1:
            chosen += f", {self.top_groups} of {self.n_groups} groups"
        return f"{chosen}, bias={self.bias is not None}, balance_rate={self.balance_rate}"

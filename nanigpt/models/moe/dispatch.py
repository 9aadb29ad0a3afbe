"""Transport of tokens to their experts, and of results back.

Shapes: T tokens, N experts of a token, R rows (a token once for each of its experts), D dim, E
experts.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass
class Dispatched:
    """Rows in the order of the experts that are computed here.

    Attributes:
        x_RD: The rows of the first expert, then those of the second, and so on.
        rows_E: Number of rows of each expert.
        way_back: Data that `combine` needs.
    """

    x_RD: torch.Tensor
    rows_E: torch.Tensor
    way_back: Any


class Dispatcher(Protocol):
    """The step before the experts and the step after; another transport, such as DeepEP, is one."""

    def dispatch(self, x_TD: torch.Tensor, experts_TN: torch.Tensor, n_experts: int) -> Dispatched:
        """Send a copy of each token to each of its experts.

        Args:
            x_TD: Tokens.
            experts_TN: Index of each token's experts.
            n_experts: Number of experts on all ranks.
        """
        ...

    def combine(
        self, out_RD: torch.Tensor, weights_TN: torch.Tensor, way_back: Any
    ) -> torch.Tensor:
        """Return out_TD, for each token the weighted sum of its experts' outputs."""
        ...


class LocalDispatcher:
    """Transport within one rank: rows are sorted by expert, without padding."""

    def dispatch(self, x_TD: torch.Tensor, experts_TN: torch.Tensor, n_experts: int) -> Dispatched:
        """Copy each token for each of its experts, sorted by expert."""
        order_R = experts_TN.flatten().argsort(stable=True)
        x_RD = sorted_rows(x_TD, order_R, experts_TN.shape[1])
        return Dispatched(x_RD, count(experts_TN, n_experts), order_R)

    def combine(
        self, out_RD: torch.Tensor, weights_TN: torch.Tensor, way_back: torch.Tensor
    ) -> torch.Tensor:
        """Return out_TD, for each token the weighted sum of its experts' outputs."""
        return weighted_sum(out_RD, weights_TN, order_R=way_back)


def count(experts: torch.Tensor, n_experts: int) -> torch.Tensor:
    """Return tokens_E, the number of tokens that chose each expert (int64)."""
    chosen = experts.flatten()
    zeros = torch.zeros(n_experts, dtype=torch.int64, device=chosen.device)
    return zeros.scatter_add(0, chosen, torch.ones_like(chosen))


def sorted_rows(x_TD: torch.Tensor, order_R: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return copies of tokens in the order of their experts."""
    # `expand` sums the gradients of a token's copies in a fixed order. A single index of all rows
    # would sum them in whichever order they come.
    return x_TD.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)[order_R]


def weighted_sum(
    out_RD: torch.Tensor, weights_TN: torch.Tensor, order_R: torch.Tensor
) -> torch.Tensor:
    """Undo `sorted_rows`, and sum in float32, in the order of the token's experts."""
    back_R = torch.empty_like(order_R)
    back_R[order_R] = torch.arange(order_R.shape[0], device=order_R.device)
    out_TND = out_RD[back_R].unflatten(0, weights_TN.shape)
    return (out_TND.float() * weights_TN.unsqueeze(-1)).sum(1).to(out_RD.dtype)

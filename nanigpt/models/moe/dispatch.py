"""Bringing tokens to their experts, and results back.

Shapes: T tokens, N experts of a token, R rows (a token once for each of its experts), D dim, E
experts.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass
class Dispatched:
    """Rows as experts want them.

    Attributes:
        x_RD: those of the first expert that is computed here, then those of the second, and so on.
        rows_E: how many each has, of the experts that are computed here.
        way_back: what `combine` needs to know.
    """

    x_RD: torch.Tensor
    rows_E: torch.Tensor
    way_back: Any


class Dispatcher(Protocol):
    """Two passes around the experts; whoever has other ones, such as DeepEP, writes them so."""

    def dispatch(self, x_TD: torch.Tensor, experts_TN: torch.Tensor, n_experts: int) -> Dispatched:
        """Sends a copy of each token to each of its experts, of `n_experts` in all."""
        ...

    def combine(
        self, out_RD: torch.Tensor, weights_TN: torch.Tensor, way_back: Any
    ) -> torch.Tensor:
        """Returns out_TD: of each token, the weighted sum of what its experts made of it."""
        ...


class LocalDispatcher:
    """All experts are computed here: rows are sorted by expert, without padding."""

    def dispatch(self, x_TD: torch.Tensor, experts_TN: torch.Tensor, n_experts: int) -> Dispatched:
        order_R = experts_TN.flatten().argsort(stable=True)
        x_RD = sorted_rows(x_TD, order_R, experts_TN.shape[1])
        return Dispatched(x_RD, count(experts_TN, n_experts), order_R)

    def combine(
        self, out_RD: torch.Tensor, weights_TN: torch.Tensor, order_R: torch.Tensor
    ) -> torch.Tensor:
        return weighted_sum(out_RD, weights_TN, order_R)


def count(experts: torch.Tensor, n_experts: int) -> torch.Tensor:
    """tokens_E: how often each expert was chosen (int64)."""
    chosen = experts.flatten()
    zeros = torch.zeros(n_experts, dtype=torch.int64, device=chosen.device)
    return zeros.scatter_add(0, chosen, torch.ones_like(chosen))


def sorted_rows(x_TD: torch.Tensor, order_R: torch.Tensor, top_k: int) -> torch.Tensor:
    """Copies of tokens in the order of their experts."""
    # The copies of a token are summed apart from one another in the backward pass, and not by
    # whichever comes first, as they would be if one index had them all.
    return x_TD.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)[order_R]


def weighted_sum(
    out_RD: torch.Tensor, weights_TN: torch.Tensor, order_R: torch.Tensor
) -> torch.Tensor:
    """Undoes `sorted_rows`; sums in float32, in the order of the token's experts."""
    back_R = torch.empty_like(order_R)
    back_R[order_R] = torch.arange(order_R.shape[0], device=order_R.device)
    out_TND = out_RD[back_R].unflatten(0, weights_TN.shape)
    return (out_TND.float() * weights_TN.unsqueeze(-1)).sum(1).to(out_RD.dtype)

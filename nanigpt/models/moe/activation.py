"""What experts do between their two layers.

Shapes: any.
"""

from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from nanigpt.problems import require_positive


@runtime_checkable
class GatedActivation(Protocol):
    """Hidden features, of gates and of what they let pass."""

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor: ...


class SwiGLU:
    """`silu(gate) * up` (Shazeer, 2020)."""

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(gate) * up

    def __repr__(self) -> str:
        return "SwiGLU"


class ClampedSwiGLU:
    """`gate * sigmoid(alpha * gate) * (up + 1)`, of inputs cut at `limit` (GPT-OSS, 2025).

    Args:
        limit: the gate is at most that, `up` between minus that and that.
    """

    def __init__(self, *, alpha: float = 1.702, limit: float = 7.0):
        require_positive(alpha=alpha, limit=limit)
        self.alpha = alpha
        self.limit = limit

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)

    def __repr__(self) -> str:
        return f"ClampedSwiGLU(alpha={self.alpha}, limit={self.limit})"

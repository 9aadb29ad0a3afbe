"""Soft caps: numbers that stay within bounds, and keep their gradients (Gemma 2, 2024).

Shapes: any.
"""

import torch

from nanigpt.problems import refuse


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Return `cap * tanh(x / cap)`, computed in float32, in the dtype of x."""
    return (cap * torch.tanh(x.float() / cap)).to(x.dtype)


def check_soft_cap(name: str, cap: float | None) -> None:
    """Raise an error if a cap, the argument of this name, is not above 0."""
    if cap is not None and not 0 < cap < float("inf"):
        refuse(name, cap, "more than 0, or None")

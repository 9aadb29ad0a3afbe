"""Nonlinear functions of hidden features, for feed-forward networks and for experts.

Shapes: any.
"""

import abc
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch.nn import functional as F

from nanigpt.problems import require_choice, require_positive

Approximation = Literal["none", "tanh"]


@runtime_checkable
class Activation(Protocol):
    """Function of each feature, for a network of two matrices."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


@runtime_checkable
class GatedActivation(Protocol):
    """Function of two features: a gate, and the feature that it scales."""

    def __call__(self, gate: torch.Tensor, up: torch.Tensor, /) -> torch.Tensor: ...


class Elementwise(abc.ABC):
    """Base class of functions of one feature, which can also be gates.

    Called with one tensor it returns `function(x)`, with two `function(gate) * up` (Shazeer, 2020).
    So one class serves networks of two matrices and gated ones.
    """

    @abc.abstractmethod
    def function(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function's values, in the shape and dtype of x."""

    def __call__(self, gate: torch.Tensor, up: torch.Tensor | None = None, /) -> torch.Tensor:
        y = self.function(gate)
        return y if up is None else y * up

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})" if arguments else type(self).__name__


class SiLU(Elementwise):
    """`x * sigmoid(x)` (Elfwing et al., 2018); as a gate, SwiGLU."""

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x)


class GELU(Elementwise):
    """`x * P(X <= x)` of a standard normal X (Hendrycks and Gimpel, 2016); as a gate, GeGLU.

    Args:
        approximate: `none` computes the error function; `tanh` is the paper's approximation, which
            GPT-2 and Gemma use.
    """

    def __init__(self, *, approximate: Approximation = "none"):
        require_choice(get_args(Approximation), approximate=approximate)
        self.approximate = approximate

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate=self.approximate)


class ReLUSquared(Elementwise):
    """`max(x, 0)^2` (Primer: So et al., 2021)."""

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


class SwiGLU:
    """`silu(gate) * up` (Shazeer, 2020)."""

    def __call__(self, gate: torch.Tensor, up: torch.Tensor, /) -> torch.Tensor:
        return F.silu(gate) * up

    def __repr__(self) -> str:
        return "SwiGLU"


class ClampedSwiGLU:
    """`gate * sigmoid(alpha * gate) * (up + 1)`, with inputs clamped at `limit` (GPT-OSS, 2025).

    Args:
        limit: Upper bound of the gate. `up` is clamped between minus this bound and this bound.
    """

    def __init__(self, *, alpha: float = 1.702, limit: float = 7.0):
        require_positive(alpha=alpha, limit=limit)
        self.alpha = alpha
        self.limit = limit

    def __call__(self, gate: torch.Tensor, up: torch.Tensor, /) -> torch.Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)

    def __repr__(self) -> str:
        return f"ClampedSwiGLU(alpha={self.alpha}, limit={self.limit})"

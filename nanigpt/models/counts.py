"""What a model costs, told by the definitions of its modules: on meta as anywhere, nothing is run.

A module that multiplies defines

    active_weights() -> int     weights that one token is multiplied with

and one that has parameters which a token may pass by, such as experts, defines

    idle_parameters() -> int    parameters that one token does not use

What defines neither is the sum of its children.
"""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCounts:
    """Distinct parameters of a decoder: a weight under two names counts once.

    Attributes:
        total: all of them.
        active: those that one token uses, which is all but the experts that it is not sent to. The
            embedding counts whole, as in the figures of Qwen3 (3.3 B of "30B-A3B") and Llama 4
            ("17B"); those of DeepSeek-V3 (36.6 B) and GPT-OSS (3.6 B) are without `embedding`.
        embedding: the look-up table.
        tied: whether that table is the output head too.
    """

    total: int
    active: int
    embedding: int
    tied: bool

    def __str__(self) -> str:
        active = "" if self.active == self.total else f" ({self.active:,} active)"
        return f"{self.total:,} parameters{active}"


def active_weights(module: nn.Module) -> int:
    """Weights at or below a module that one token is multiplied with."""
    return _told(module, "active_weights")


def idle_parameters(module: nn.Module) -> int:
    """Parameters at or below a module that one token does not use."""
    return _told(module, "idle_parameters")


def _told(module: nn.Module, method: str) -> int:
    own = getattr(module, method, None)
    return own() if own is not None else sum(_told(child, method) for child in module.children())

"""Extras of attention in some families: sinks, and a temperature that depends on the position.

Shapes: B batch, L sequence, H query heads, K head_dim.
"""

from typing import Annotated

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.init import Initializer
from nanigpt.problems import require_not_negative, require_positive


class AttentionSink(nn.Module):
    """Learned score per head, beside the keys' scores in the softmax, that has no value.

    A head that finds nothing to attend to gives its weight to the sink (Xiao et al., 2023; as in
    GPT-OSS, 2025).
    """

    multiplies_below = True

    def __init__(self, *, n_heads: int, initializer: Annotated[Initializer, tags.SinkInitializer]):
        super().__init__()
        require_positive(n_heads=n_heads)
        self.n_heads = n_heads
        self.initializer = initializer
        self.weight = nn.Parameter(torch.empty(n_heads, device="meta"))

    def initializers(self) -> dict[str, Initializer]:
        return {"weight": self.initializer}

    def forward(self) -> torch.Tensor:
        """Return sink_H, in the weight's dtype."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{self.n_heads} heads"


class AttentionTemperature:
    """Factor of queries: `1 + scale * ln(1 + floor((position + 1) / floor_scale))`.

    It sharpens attention for queries that can look farther back (Nakanishi, 2025; as in Llama 4's
    layers without RoPE).

    Args:
        floor_scale: Number of positions that share a factor.
    """

    def __init__(
        self,
        *,
        scale: float = 0.1,
        floor_scale: Annotated[int, tags.Unit("tokens")] = 8192,
    ):
        require_not_negative(scale=scale)
        require_positive(floor_scale=floor_scale)
        self.scale = scale
        self.floor_scale = floor_scale

    def __call__(
        self, q_BLHK: torch.Tensor, positions_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scale `q_BLHK`; its positions are 0 to L, or the given ones."""
        if positions_BL is None:
            positions_BL = torch.arange(q_BLHK.shape[1], device=q_BLHK.device).unsqueeze(0)
        steps_BL = ((positions_BL + 1) // self.floor_scale).float()
        factor_BL = 1.0 + self.scale * steps_BL.log1p()
        return (q_BLHK * factor_BL[..., None, None]).to(q_BLHK.dtype)

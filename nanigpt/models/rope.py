"""Rotary position embedding.

Shapes: B batch, L sequence, H heads, K head_dim, F = K / 2 frequencies, M max_sequence_length.
"""

import math
from typing import Annotated, Protocol

import torch
from torch import nn

from nanigpt import tags
from nanigpt.problems import Problem, refuse, refuse_all, require_positive


class FrequencyScaling(Protocol):
    """Changes RoPE's frequencies, so that it serves sequences longer than it was trained on.

    Attributes:
        attention_factor: multiplies the rotated queries and keys.
        score_factor: multiplies scores, with what of them is not rotated.
    """

    attention_factor: float
    score_factor: float

    def __call__(self, frequency_F: torch.Tensor, theta: float, /) -> torch.Tensor: ...


class Llama3Scaling:
    """Llama 3.1's stretching of RoPE to long contexts.

    Wavelengths longer than `original_max_positions / low_freq_factor` are slowed down by `factor`,
    those shorter than `original_max_positions / high_freq_factor` are kept, and those between are
    blended linearly in their number of turns (The Llama 3 Herd of Models, 2024; the numbers are
    in the published model cards).
    """

    attention_factor = 1.0
    score_factor = 1.0

    def __init__(
        self,
        *,
        factor: float = 8.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_max_positions: int = 8192,
    ):
        if not 0 < low_freq_factor <= high_freq_factor:
            expected = f"more than 0, at most high_freq_factor={high_freq_factor}"
            refuse("low_freq_factor", low_freq_factor, expected, given=("high_freq_factor",))
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
        self.original_max_positions = original_max_positions

    def __call__(self, frequency_F: torch.Tensor, theta: float) -> torch.Tensor:
        turns_F = self.original_max_positions * frequency_F / (2 * math.pi)
        between = self.high_freq_factor - self.low_freq_factor  # 0 in Llama 4: nothing is blended
        more_F = turns_F - self.low_freq_factor
        kept_F = (more_F / between).clamp(0.0, 1.0) if between else (more_F >= 0).float()
        return frequency_F * (kept_F + (1.0 - kept_F) / self.factor)


class YarnScaling:
    """YaRN (Peng et al., 2023).

    Frequencies that turn more than `beta_fast` times within `original_max_positions` are kept,
    those that turn less than `beta_slow` times are slowed down by `factor`, and those between are
    blended linearly in their index.

    Args:
        factor: how much longer sequences become.
        attention_factor: multiplies the rotated queries and keys, and so the scores by its square;
            None is `1 + 0.1 ln(factor)`, the paper's equation 22, divided by the same with
            `mscale_all_dim`.
        mscale_all_dim: scores are multiplied by `(1 + 0.1 mscale_all_dim ln(factor)) ** 2`, also
            what of them is not rotated (DeepSeek-V2's and V3's name for it; 0 is the paper's YaRN).
        truncate: round the indices between which frequencies are blended outwards to whole ones.
    """

    def __init__(
        self,
        *,
        factor: float,
        original_max_positions: int,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        mscale_all_dim: float = 0.0,
        truncate: bool = True,
    ):
        sizes = {"factor": factor, "original_max_positions": original_max_positions}
        refuse_all(Problem(k, v, "at least 1") for k, v in sizes.items() if v < 1)
        if not 0 < beta_slow < beta_fast:
            expected = f"more than 0, less than beta_fast={beta_fast}"
            refuse("beta_slow", beta_slow, expected, given=("beta_fast",))
        self.factor = factor
        self.original_max_positions = original_max_positions
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow
        mscale = 1.0 + 0.1 * mscale_all_dim * math.log(factor)
        if attention_factor is None:
            attention_factor = (1.0 + 0.1 * math.log(factor)) / mscale
        self.attention_factor = attention_factor
        self.mscale_all_dim = mscale_all_dim
        self.score_factor = mscale**2
        self.truncate = truncate

    def __call__(self, frequency_F: torch.Tensor, theta: float) -> torch.Tensor:
        n = len(frequency_F)
        first, last = (self._index(n, theta, turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # Published implementations clamp to the last feature, not to the last frequency.
        first, last = max(first, 0), min(last, 2 * n - 1)
        index_F = torch.arange(n, dtype=torch.float32)
        slowed_F = ((index_F - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
        return frequency_F * (1.0 - slowed_F + slowed_F / self.factor)

    def _index(self, n: int, theta: float, turns: float) -> float:
        """The index, of n, of the frequency that turns so often within the original positions."""
        return n * math.log(self.original_max_positions / (2 * math.pi * turns)) / math.log(theta)


class RotaryEmbedding(nn.Module):
    """Rotates pairs of query and key features by position-dependent angles (Su et al., 2021).

    Feature i is paired with feature i + K/2, the layout of published Hugging Face weights. One
    instance serves all layers. The table is derived from the arguments, so it is not written to
    checkpoints: a run may resume with a longer sequence.

    Args:
        head_dim: features per head, even.
        max_sequence_length: positions in the table.
        theta: base of the geometric series of wavelengths.
        scaling: changes the frequencies, or None.
    """

    multiplies_below = True

    def __init__(
        self,
        *,
        head_dim: Annotated[int, tags.Width],
        max_sequence_length: Annotated[int, tags.SequenceLength],
        theta: float = 500_000.0,
        scaling: FrequencyScaling | None = None,
    ):
        super().__init__()
        if head_dim <= 0 or head_dim % 2:
            refuse("head_dim", head_dim, "a positive even number, since RoPE rotates pairs")
        require_positive(max_sequence_length=max_sequence_length)
        self.head_dim = head_dim
        self.max_sequence_length = max_sequence_length
        self.theta = theta
        self.scaling = scaling
        table = torch.empty(2, max_sequence_length, head_dim // 2, device="meta")
        self.register_buffer("cos_sin_2MF", table, persistent=False)

    @property
    def score_factor(self) -> float:
        """What attention multiplies its scores by."""
        return 1.0 if self.scaling is None else self.scaling.score_factor

    def reset_buffers(self) -> None:
        """Computes the table, in float32, where the buffer lives."""
        table_2MF = self.cos_sin_2MF
        exponent_F = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        frequency_F = self.theta**-exponent_F
        if self.scaling is not None:
            frequency_F = self.scaling(frequency_F, self.theta)
        position_M = torch.arange(self.max_sequence_length, dtype=torch.float32)
        angle_MF = torch.outer(position_M, frequency_F)
        factor = 1.0 if self.scaling is None else self.scaling.attention_factor
        table_2MF.copy_(factor * torch.stack([angle_MF.cos(), angle_MF.sin()]))

    def forward(
        self, x_BLHK: torch.Tensor, positions_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rotates `x_BLHK`, whose positions are 0 to L or those given, in float32."""
        length = x_BLHK.shape[1]
        if length > self.max_sequence_length:
            raise ValueError(
                f"{length} positions exceed the RoPE table of {self.max_sequence_length}"
            )
        table_2MF = self.cos_sin_2MF
        at = slice(length) if positions_BL is None else positions_BL
        cos, sin = table_2MF[:, at].unsqueeze(-2)  # [(B,) L, 1, F]: the same for all heads
        left, right = x_BLHK.float().chunk(2, dim=-1)
        rotated = (left * cos - right * sin, right * cos + left * sin)
        return torch.cat(rotated, dim=-1).to(x_BLHK.dtype)

    def extra_repr(self) -> str:
        return f"{self.max_sequence_length} x {self.head_dim}, theta={self.theta:g}"

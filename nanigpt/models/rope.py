"""Rotary position embedding.

Shapes: B batch, L sequence, H heads, K head_dim, F = K / 2 frequencies, M max_sequence_length.
"""

import math
from typing import Annotated, Protocol

import torch
from torch import nn

from nanigpt import tags
from nanigpt.problems import Problem, refuse, refuse_all, require_finite, require_positive


class FrequencyScaling(Protocol):
    """Change of RoPE's frequencies for sequences longer than those of training.

    Attributes:
        attention_factor: Factor of the rotated queries and keys.
        score_factor: Factor of whole scores, including features that are not rotated.
    """

    attention_factor: float
    score_factor: float

    def __call__(self, frequency_F: torch.Tensor, theta: float, /) -> torch.Tensor:
        """Return the changed frequencies."""
        ...


class Llama3Scaling:
    """Llama 3.1's extension of RoPE to long contexts.

    Wavelengths longer than `original_max_positions / low_freq_factor` are slowed down by `factor`.
    Wavelengths shorter than `original_max_positions / high_freq_factor` are kept. Wavelengths
    between these bounds are interpolated linearly in their number of turns (The Llama 3 Herd of
    Models, 2024; the published model cards have the numbers).
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
        require_positive(factor=factor, original_max_positions=original_max_positions)
        if not 0 < low_freq_factor <= high_freq_factor:
            expected = f"more than 0, at most high_freq_factor={high_freq_factor}"
            refuse("low_freq_factor", low_freq_factor, expected, given=("high_freq_factor",))
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
        self.original_max_positions = original_max_positions

    def __call__(self, frequency_F: torch.Tensor, theta: float) -> torch.Tensor:
        turns_F = self.original_max_positions * frequency_F / (2 * math.pi)
        between = self.high_freq_factor - self.low_freq_factor  # 0 in Llama 4: no interpolation
        more_F = turns_F - self.low_freq_factor
        kept_F = (more_F / between).clamp(0.0, 1.0) if between else (more_F >= 0).float()
        return frequency_F * (kept_F + (1.0 - kept_F) / self.factor)


class YarnScaling:
    """YaRN, an extension of RoPE to long contexts (Peng et al., 2023).

    Frequencies that turn more than `beta_fast` times within `original_max_positions` are kept.
    Frequencies that turn less than `beta_slow` times are slowed down by `factor`. Frequencies
    between these bounds are interpolated linearly in their index.

    Args:
        factor: Ratio of the new sequence length to the original one.
        original_max_positions: Longest sequence of the original training.
        beta_fast: Turns above which a frequency is kept.
        beta_slow: Turns below which a frequency is slowed down in full.
        attention_factor: Factor of the rotated queries and keys, so that scores get its square.
            None is `1 + 0.1 ln(factor)`, the paper's equation 22, divided by the same expression
            with `mscale_all_dim`.
        mscale_all_dim: Whole scores, including features that are not rotated, are multiplied by `(1
            + 0.1 mscale_all_dim ln(factor)) ** 2`. The name comes from DeepSeek-V2 and V3; 0 is the
            paper's YaRN.
        truncate: Whether to round the two indices between which frequencies are interpolated, down
            and up, to whole numbers.
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
        refuse_all(Problem(k, v, "at least 1") for k, v in sizes.items() if not v >= 1)
        require_finite(factor=factor, beta_fast=beta_fast, mscale_all_dim=mscale_all_dim)
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
        first, last = self._index(n, theta, self.beta_fast), self._index(n, theta, self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # Published implementations clamp to the last feature, not to the last frequency.
        first, last = max(first, 0), min(last, 2 * n - 1)
        index_F = torch.arange(n, dtype=torch.float32)
        slowed_F = ((index_F - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
        return frequency_F * (1.0 - slowed_F + slowed_F / self.factor)

    def _index(self, n: int, theta: float, turns: float) -> float:
        """Return the index of the frequency with this number of turns in the original length."""
        return n * math.log(self.original_max_positions / (2 * math.pi * turns)) / math.log(theta)


class RotaryEmbedding(nn.Module):
    """Rotation of pairs of query and key features by angles that depend on position.

    (Su et al., 2021.) Feature i is paired with feature i + K/2, which is the layout of published
    Hugging Face weights. One instance serves all layers. The table follows from the arguments, so
    checkpoints do not contain it, and a run may resume with a longer sequence.

    Args:
        head_dim: Features per head, an even number.
        max_sequence_length: Positions in the table.
        theta: Base of the geometric series of wavelengths.
        scaling: A change of the frequencies, or None.
    """

    multiplies_below = True
    cos_sin_2MF: torch.Tensor

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
        require_positive(max_sequence_length=max_sequence_length, theta=theta)
        self.head_dim = head_dim
        self.max_sequence_length = max_sequence_length
        self.theta = theta
        self.scaling = scaling
        table = torch.empty(2, max_sequence_length, head_dim // 2, device="meta")
        self.register_buffer("cos_sin_2MF", table, persistent=False)

    @property
    def score_factor(self) -> float:
        """Return the factor of attention's scores."""
        return 1.0 if self.scaling is None else self.scaling.score_factor

    def reset_buffers(self) -> None:
        """Compute the table in float32, on the buffer's device."""
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
        """Rotate `x_BLHK` in float32; without `positions_BL`, its positions are 0 to L."""
        length = x_BLHK.shape[1]
        if length > self.max_sequence_length:
            raise ValueError(
                f"{length} positions exceed the RoPE table of {self.max_sequence_length}"
            )
        table_2MF = self.cos_sin_2MF
        at = slice(length) if positions_BL is None else positions_BL
        cos, sin = table_2MF[:, at].unsqueeze(-2)  # [(B,) L, 1, F]: all heads share it
        left, right = x_BLHK.float().chunk(2, dim=-1)
        rotated = (left * cos - right * sin, right * cos + left * sin)
        return torch.cat(rotated, dim=-1).to(x_BLHK.dtype)

    def extra_repr(self) -> str:
        return f"{self.max_sequence_length} x {self.head_dim}, theta={self.theta:g}"

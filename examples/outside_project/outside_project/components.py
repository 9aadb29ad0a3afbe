"""Components that a command line can name: `set:data.tokenizer=@ascii_tokenizer(lower=True)`."""

import fiddle as fdl

from nanigpt.config.registry import component
from outside_project.layers import LearnedPositionAttention, MeanSquareNorm, ReluSquared
from outside_project.tokenizer import AsciiTokenizer
from outside_project.tracker import CsvTracker


@component
def ascii_tokenizer(lower: bool = False) -> fdl.Config[AsciiTokenizer]:
    """Use ASCII characters as token ids."""
    return fdl.Config(AsciiTokenizer, lower=lower)


@component
def csv_tracker(
    columns: tuple[str, ...] = ("step", "loss"), file: str = "metrics.csv"
) -> fdl.Config[CsvTracker]:
    """Write a table of some numbers of every step."""
    return fdl.Config(CsvTracker, columns=columns, file=file)


@component
def mean_square_norm(dim: int) -> fdl.Config[MeanSquareNorm]:
    """Divide features by the root of their mean square."""
    return fdl.Config(MeanSquareNorm, dim=dim)


@component
def outside_feed_forward(dim: int, hidden_dim: int) -> fdl.Config[ReluSquared]:
    """Use a feed-forward network with the square of ReLU."""
    return fdl.Config(ReluSquared, dim=dim, hidden_dim=hidden_dim)


@component
def learned_position_attention(
    dim: int, n_heads: int, max_sequence_length: int
) -> fdl.Config[LearnedPositionAttention]:
    """Use attention with learned positions."""
    return fdl.Config(
        LearnedPositionAttention,
        dim=dim,
        n_heads=n_heads,
        max_sequence_length=max_sequence_length,
    )

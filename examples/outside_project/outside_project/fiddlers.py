"""Edits of any run's config."""

import fiddle as fdl
from fiddle import selectors

from nanigpt.config.registry import fiddler
from nanigpt.errors import UsageError
from nanigpt.models.block import TransformerBlock
from nanigpt.training.trainer import Trainer
from outside_project.layers import ReluSquared
from outside_project.tracker import CsvTracker


@fiddler
def relu_squared_networks(cfg: fdl.Config[Trainer], expansion: int = 4) -> None:
    """Exchange every feed-forward network for one with the square of ReLU."""
    blocks = list(selectors.select(cfg, TransformerBlock, check_nonempty=False))
    if not blocks:
        raise UsageError("relu_squared_networks: the run has no TransformerBlock")
    for block in blocks:
        dim = block.feed_forward_norm.dim
        block.feed_forward = fdl.Config(ReluSquared, dim=dim, hidden_dim=expansion * dim)


@fiddler
def track_as_csv(
    cfg: fdl.Config[Trainer], columns: tuple[str, ...] = ("step", "loss", "grad_norm", "val_loss")
) -> None:
    """Write some numbers of every step into metrics.csv."""
    others = [t for t in cfg.trackers if fdl.get_callable(t) is not CsvTracker]
    cfg.trackers = [*others, fdl.Config(CsvTracker, columns=columns)]

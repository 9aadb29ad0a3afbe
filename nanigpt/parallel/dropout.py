"""The place of a rank, which dropout needs for its random streams."""

from torch import nn

from nanigpt.models.dropout import Dropout
from nanigpt.parallel.mesh import Layout


def place_dropout(model: nn.Module, layout: Layout, *, splits_sequence: bool) -> None:
    """Make ranks with different tokens drop different features, in place.

    Each rank of `tp` drops its part of the features that one rank would drop. Stages of a pipeline
    have separate random streams, because their modules have different names.

    Args:
        model: The model.
        layout: The place of this rank.
        splits_sequence: Whether ranks of `tp` have parts of the sequence between modules.
    """
    place = layout.data_rank * layout.sizes["cp"] + layout.position["cp"]
    for module in model.modules():
        if isinstance(module, Dropout):
            module.place = place * 0x9E3779B1 & 0x7FFFFFFF  # 31 bits, different for each place
            module.part = layout.position["tp"] if splits_sequence else 0


def take_back_dropout(model: nn.Module) -> None:
    """Do not count the last forward pass, which was not for training."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.take_back()

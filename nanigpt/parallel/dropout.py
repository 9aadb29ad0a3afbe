"""What dropout has to know of a rank's place."""

from torch import nn

from nanigpt.models.dropout import Dropout
from nanigpt.parallel.mesh import Layout


def place_dropout(model: nn.Module, layout: Layout, *, splits_sequence: bool) -> None:
    """Make ranks that see other tokens drop other features, in place.

    Ranks of `tp` drop parts of what one rank would, and stages of a pipeline have streams of their
    own by the names of their modules.

    Args:
        splits_sequence: whether ranks of `tp` have parts of the sequence between modules.
    """
    place = layout.data_rank * layout.sizes["cp"] + layout.position["cp"]
    for module in model.modules():
        if isinstance(module, Dropout):
            module.place = place * 0x9E3779B1 & 0x7FFFFFFF  # 31 bits, which no two places share
            module.part = layout.position["tp"] if splits_sequence else 0


def take_back_dropout(model: nn.Module) -> None:
    """Leave uncounted what was computed last, but not to train."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.take_back()

"""Fiddlers that change what a model is trained to predict."""

import fiddle as fdl

from nanigpt.config.registry import fiddler
from nanigpt.config.sharing import Sharing
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.fiddlers.sizes import copy_of
from nanigpt.training.trainer import Trainer


@fiddler
def multi_token(cfg: fdl.Config[Trainer], depths: int = 1, loss_weight: float = 0.3) -> None:
    """Predict `depths` further tokens in training, each with a block like the last layer."""
    if depths < 1:
        raise UsageError(f"multi_token({depths}): expected at least 1 further token")
    model = cfg.model
    if model.multi_token is not None:
        raise UsageError(
            "multi_token: the run predicts further tokens already; change model.multi_token, or "
            "set it to None first"
        )
    sharing = Sharing(cfg)
    model.multi_token = nodes.multi_token_prediction(
        blocks=[copy_of(model.layers[-1], sharing) for _ in range(depths)],
        norm=model.norm,
        loss_weight=loss_weight,
    )

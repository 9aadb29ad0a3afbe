"""Fiddlers that change what a model is trained to predict."""

import copy

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.registry import fiddler
from nanigpt.config.sharing import Sharing
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.models.rope import RotaryEmbedding
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
    last = model.layers[-1]
    own = Sharing(cfg).internal(last)
    # The new blocks share the nodes that layers share, such as the RoPE table. All else can differ.
    shared = [
        part
        for part, _ in daglish.iterate(last)
        if isinstance(part, fdl.Buildable)
        and (id(part) not in own or fdl.get_callable(part) is RotaryEmbedding)
    ]
    model.multi_token = nodes.multi_token_prediction(
        blocks=[copy.deepcopy(last, {id(part): part for part in shared}) for _ in range(depths)],
        norm=model.norm,
        loss_weight=loss_weight,
    )

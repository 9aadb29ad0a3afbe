"""Fiddlers that make a run faster."""

import fiddle as fdl

from nanigpt.config.registry import fiddler
from nanigpt.parallel.compile import Compile, Scope
from nanigpt.training.trainer import Trainer


@fiddler
def compile(
    cfg: fdl.Config[Trainer],
    backend: str = "inductor",
    scope: Scope = "blocks",
    fullgraph: bool = True,
    loss: bool = True,
) -> None:
    """Compile the model, block by block or as a whole, and the loss."""
    cfg.parallelizer.compile = fdl.Config(
        Compile, backend=backend, scope=scope, fullgraph=fullgraph, loss=loss
    )

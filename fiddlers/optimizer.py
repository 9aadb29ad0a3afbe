"""Fiddlers that change the optimizer, and its values for some parameters."""

from typing import Any

import fiddle as fdl
from fiddle import selectors

from nanigpt.config.registry import fiddler
from nanigpt.errors import UsageError
from nanigpt.optim.adamw import State, adamw
from nanigpt.optim.groups import ParameterGroup
from nanigpt.optim.muon import AdjustLR
from nanigpt.optim.muon import muon as make_muon
from nanigpt.training.trainer import Trainer


@fiddler
def muon(
    cfg: fdl.Config[Trainer], lr: float | None = None, adjust_lr: AdjustLR = "match_rms_adamw"
) -> None:
    """Use Muon for matrices; embedding, head and vectors keep their optimizer.

    Args:
        cfg: The run.
        lr: Learning rate of Muon; None takes the optimizer's.
        adjust_lr: Factor of the learning rate.
    """
    if fdl.get_callable(cfg.optimizer) is make_muon:
        raise UsageError("muon: the run has Muon already; change optimizer.lr")
    cfg.optimizer = fdl.Partial(
        make_muon,
        lr=cfg.optimizer.lr if lr is None else lr,
        weight_decay=cfg.optimizer.weight_decay,
        adjust_lr=adjust_lr,
        dtype=cfg.model.embedding.compute_dtype,
        groups=cfg.optimizer.groups,
        others=cfg.optimizer,
    )


@fiddler
def optimizer_state(cfg: fdl.Config[Trainer], state: State) -> None:
    """Store AdamW's moments in `bfloat16`, `8bit` or `float32`."""
    _adamw(cfg).state = state


@fiddler
def parameter_group(
    cfg: fdl.Config[Trainer],
    select: str,
    lr: float | None = None,
    weight_decay: float | None = None,
) -> None:
    """Give some parameters a learning rate or a weight decay of their own.

    A group that selects the same has its values replaced.

    Args:
        cfg: The run.
        select: Name or kind of the parameters, which may be AdamW's or Muon's.
        lr: Peak learning rate; None keeps the optimizer's.
        weight_decay: Weight decay; None keeps the optimizer's.
    """
    group = fdl.Config(ParameterGroup, select=select, lr=lr, weight_decay=weight_decay)
    for optimizer in (_adamw(cfg), *selectors.select(cfg, make_muon, check_nonempty=False)):
        groups = {g.select: g for g in optimizer.groups}  # a replaced one keeps its place
        optimizer.groups = tuple((groups | {select: group}).values())


def _adamw(cfg: fdl.Config[Trainer]) -> Any:
    found = list(selectors.select(cfg, adamw, check_nonempty=False))
    if not found:
        name = fdl.get_callable(cfg.optimizer).__name__
        raise UsageError(f"optimizer is {name}: expected adamw, or muon that contains adamw")
    return found[0]

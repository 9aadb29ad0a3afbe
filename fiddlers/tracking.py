"""Fiddlers that choose the trackers of a run's metrics."""

from typing import Any

import fiddle as fdl

from nanigpt.config.registry import fiddler
from nanigpt.training.trackers.tensorboard import TensorBoard
from nanigpt.training.trackers.wandb import WandB
from nanigpt.training.trainer import Trainer


@fiddler
def tensorboard(cfg: fdl.Config[Trainer], on: bool = True) -> None:
    """Write TensorBoard events, or none if `on` is False."""
    _track(cfg, TensorBoard, on)


@fiddler
def wandb(cfg: fdl.Config[Trainer], project: str | None = None, on: bool = True) -> None:
    """Send metrics and config to Weights & Biases, or nothing if `on` is False."""
    _track(cfg, WandB, on, project=project)


def _track(cfg: fdl.Config[Trainer], kind: type, on: bool, **arguments: Any) -> None:
    """Add a tracker of a kind, change the existing one, or remove it."""
    mine = [tracker for tracker in cfg.trackers if fdl.get_callable(tracker) is kind]
    if not on:
        cfg.trackers = [tracker for tracker in cfg.trackers if tracker not in mine]
        return
    if not mine:
        mine = [fdl.Config(kind)]
        cfg.trackers = [*cfg.trackers, *mine]
    for name, value in arguments.items():
        setattr(mine[0], name, value)

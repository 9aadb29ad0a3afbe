"""Give names and arguments of earlier versions their new places, so that old records still load.

A record names the classes and arguments that existed when it was written. `MOVED` gives the new
place of a class or module that was moved. A function with `@upgrade` edits a record in place after
Fiddle has read it. The record may then have arguments that its class no longer has. The function
does not change parts that are up to date.
"""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import fiddle as fdl
from fiddle import daglish, tagging

from nanigpt.config.registry import moved, upgrade
from nanigpt.models.attention import Attention
from nanigpt.models.feed_forward import MLP, FeedForward
from nanigpt.models.latent_attention import LatentAttention
from nanigpt.models.moe.experts import Experts
from nanigpt.tags import ResidualScale
from nanigpt.tasks.language_modeling import LanguageModeling
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.metrics import Metrics
from nanigpt.training.trackers.console import Console
from nanigpt.training.trackers.json_lines import JsonLines
from nanigpt.training.trackers.tensorboard import TensorBoard
from nanigpt.training.trainer import Trainer

MOVED = {
    "nanigpt.models.decoder.TransformerBlock": "nanigpt.models.block.TransformerBlock",
    "nanigpt.models.moe.activation": "nanigpt.models.activation",
    "nanigpt.training.loss": "nanigpt.tasks.cross_entropy",
    "nanigpt.training.sample": "nanigpt.tasks.sampler",
}

moved(MOVED)


@upgrade
def trainer_has_a_task(cfg: fdl.Buildable) -> None:
    """Replace `Trainer(loss, sampler)` by `Trainer(task=LanguageModeling(loss, sampler))`."""
    for trainer in _nodes(cfg, Trainer):
        if "loss" in trainer.__arguments__:
            loss, sampler = _take(trainer, "loss"), _take(trainer, "sampler")
            trainer.task = fdl.Config(LanguageModeling, loss=loss, sampler=sampler)


@upgrade
def evaluations_have_names(cfg: fdl.Buildable) -> None:
    """Replace `Trainer(evaluation)` by `Trainer(evaluations={"val": ...})`."""
    for evaluation in _nodes(cfg, Evaluation):
        if "n_sequences" in evaluation.__arguments__:
            evaluation.n_samples = _take(evaluation, "n_sequences")
    for trainer in _nodes(cfg, Trainer):
        if "evaluation" in trainer.__arguments__:
            trainer.evaluations = {"val": _take(trainer, "evaluation")}


@upgrade
def metrics_go_to_trackers(cfg: fdl.Buildable) -> None:
    """Replace `Metrics(tensorboard)` by `Trainer(trackers)`."""
    for metrics in _nodes(cfg, Metrics):
        with_tensorboard = True
        if "tensorboard" in metrics.__arguments__:
            with_tensorboard = _take(metrics, "tensorboard")
        for trainer in _nodes(cfg, Trainer):
            if trainer.metrics is metrics and "trackers" not in trainer.__arguments__:
                kinds = (Console, JsonLines, *([TensorBoard] if with_tensorboard else []))
                trainer.trackers = [fdl.Config(kind) for kind in kinds]


_WRITERS = {  # to the residual stream, and the argument that is or has the initializer
    Attention: "wo",
    LatentAttention: "wo",
    FeedForward: "w2",
    MLP: "w2",
    Experts: "output_initializer",
}


@upgrade
def residual_scales_have_a_tag(cfg: fdl.Buildable) -> None:
    """Scales of weights that write to the residual stream got the tag `ResidualScale`."""
    if ResidualScale in tagging.list_tags(cfg):
        return
    for kind, argument in _WRITERS.items():
        for node in _nodes(cfg, kind):
            part = getattr(node, argument)
            initializer = getattr(part, "initializer", part)
            if isinstance(initializer, fdl.Buildable) and "scale" in _parameters(initializer):
                fdl.add_tag(initializer, "scale", ResidualScale)


def _parameters(node: fdl.Buildable) -> Iterable[str]:
    return inspect.signature(fdl.get_callable(node)).parameters


def _nodes(cfg: fdl.Buildable, kind: type) -> Iterator[Any]:
    """Yield the nodes that build a class."""
    for node, _ in list(daglish.iterate(cfg)):
        if isinstance(node, fdl.Buildable) and fdl.get_callable(node) is kind:
            yield node


def _take(node: Any, argument: str) -> Any:
    """Remove an argument, and return its value."""
    value = getattr(node, argument)
    delattr(node, argument)
    return value

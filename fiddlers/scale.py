"""Fiddlers that change the size and the length of a run."""

from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish, selectors

from nanigpt import tags
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.registry import fiddler
from nanigpt.errors import UsageError
from nanigpt.fiddlers.sizes import scale_residuals
from nanigpt.models.attention import Attention
from nanigpt.models.decoder import Decoder
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.models.self_attention import SelfAttention
from nanigpt.parallel.mesh import MESH_AXES
from nanigpt.tasks.sampler import Sampler
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.trainer import Trainer


@fiddler
def steps(cfg: fdl.Config[Trainer], n: int) -> None:
    """Train for n steps, and scale the warm-up with them.

    The warm-up becomes a fraction of all steps, so that a short run forgets no number. A warm-up
    of less than one step is none.
    """
    if n < 1:
        raise UsageError(f"steps({n}): expected at least 1")
    warmup = getattr(cfg.schedule, "warmup_steps", 0)  # a user's schedule may have none
    if warmup >= 1:
        cfg.schedule.warmup_steps = warmup / cfg.steps
    set_tag(cfg, tags.Steps, n)


@fiddler
def debug_scale(cfg: fdl.Config[Trainer]) -> None:
    """Shrink any recipe so that it runs in seconds on a CPU.

    The run has narrow layers, either two or one of each kind, with few experts. It has short
    sequences and few steps, computes in float32, and needs one rank. All widths are divided by one
    number, so heads and their groups stay those of the recipe.
    """
    # The heads of latent attention are as wide as their RoPE, all others declare their width.
    heads = [
        *selectors.select(cfg, RotaryEmbedding, check_nonempty=False),
        *selectors.select(cfg, Attention, check_nonempty=False),
    ]
    widest = max((node.head_dim for node in heads), default=8)
    divisor = max(widest // 8, 1)
    for node, _ in daglish.iterate(cfg):
        if _is_node(node):
            for name in node.__argument_tags__:
                if tags.Width in fdl.get_tags(node, name):
                    setattr(node, name, max(getattr(node, name) // divisor, 1))
    for decoder in selectors.select(cfg, Decoder):
        before = len(decoder.layers)
        decoder.layers = _few(decoder.layers)
        scale_residuals(decoder, before, len(decoder.layers))
    for mixture in selectors.select(cfg, MixtureOfExperts, check_nonempty=False):
        router = mixture.router
        per_group = max(4, -(-16 // router.n_groups), -(-2 * router.top_k // router.top_groups))
        router.n_experts = min(router.n_experts, router.n_groups * per_group)
        mixture.experts.n_experts = router.n_experts
    for attention in selectors.select(cfg, SelfAttention, check_nonempty=False):
        for name in ("window", "chunk"):  # so that sequences of 64 are longer
            size = getattr(attention, name, None)  # a user's class may have none
            if size is not None:
                setattr(attention, name, min(size, 24))
    for axis in MESH_AXES:
        setattr(cfg.parallelizer.mesh, axis.name, axis.one_process)
    cfg.parallelizer.compile = None
    set_tag(cfg, tags.VocabSize, 512)
    set_tag(cfg, tags.SequenceLength, 64)
    set_tag(cfg, tags.ComputeDType, torch.float32)
    set_tag(cfg, tags.GlobalBatchSize, 8)
    set_tag(cfg, tags.LocalBatchSize, None)
    steps(cfg, 20)
    for evaluation in selectors.select(cfg, Evaluation, check_nonempty=False):
        evaluation.interval = 10
        evaluation.n_samples = 16
    cfg.checkpointer.interval = 10
    for sampler in selectors.select(cfg, Sampler, check_nonempty=False):
        sampler.max_new_tokens = 32


def _few(layers: list[fdl.Config]) -> list[fdl.Config]:
    """Return the first layer of each kind, or the first two if there is only one kind.

    In general, the first two are not enough: they may be dense, before mixtures of experts.
    """
    first: dict[Any, fdl.Config] = {}
    for layer in layers:
        # The kind is the classes of all parts, not their sizes.
        kind = frozenset(
            (daglish.path_str(path), fdl.get_callable(part) if _is_node(part) else None)
            for part, path in daglish.iterate(layer)
            if part is not None
        )
        first.setdefault(kind, layer)
    return list(first.values()) if len(first) > 1 else layers[:2]


def _is_node(part: Any) -> bool:
    return isinstance(part, fdl.Buildable)

"""How large and how long a run is."""

import fiddle as fdl
import torch
from fiddle import daglish, selectors

from nanigpt import tags
from nanigpt.config.registry import fiddler
from nanigpt.config.tagged import set_tag
from nanigpt.errors import UsageError
from nanigpt.models.attention import Attention
from nanigpt.models.decoder import Decoder
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.training.trainer import Trainer


@fiddler
def steps(cfg: fdl.Config[Trainer], n: int) -> None:
    """Trains for n steps, and scales the warm-up with them."""
    if n < 1:
        raise UsageError(f"steps({n}): expected at least 1")
    cfg.schedule.warmup_steps = cfg.schedule.warmup_steps * n // cfg.steps
    set_tag(cfg, tags.Steps, n)


@fiddler
def debug_scale(cfg: fdl.Config[Trainer]) -> None:
    """Shrinks any recipe to run in seconds on a CPU: narrow, two layers, few experts, short,
    float32, one rank.

    All widths are divided by one number, so heads and their grouping stay those of the recipe.
    """
    widest = max(rope.head_dim for rope in selectors.select(cfg, RotaryEmbedding))
    divisor = max(widest // 8, 1)
    for node, _ in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            for name in node.__argument_tags__:
                if tags.Width in fdl.get_tags(node, name):
                    setattr(node, name, max(getattr(node, name) // divisor, 1))
    for decoder in selectors.select(cfg, Decoder):
        decoder.layers = decoder.layers[:2]
    for mixture in selectors.select(cfg, MixtureOfExperts, check_nonempty=False):
        router = mixture.router
        enough = max(16, 2 * router.top_k, 4 * router.n_groups)
        router.n_experts = mixture.experts.n_experts = min(router.n_experts, enough)
    for attention in selectors.select(cfg, Attention, check_nonempty=False):
        for name in ("window", "chunk"):  # so that sequences of 64 are longer
            if getattr(attention, name) is not None:
                setattr(attention, name, min(getattr(attention, name), 24))
    for axis in ("pp", "dp_replicate", "cp", "tp", "ep"):
        setattr(cfg.parallelizer.mesh, axis, 1)
    cfg.parallelizer.mesh.dp_shard = -1
    cfg.parallelizer.compile = None
    set_tag(cfg, tags.VocabSize, 512)
    set_tag(cfg, tags.SequenceLength, 64)
    set_tag(cfg, tags.ComputeDType, torch.float32)
    set_tag(cfg, tags.GlobalBatchSize, 8)
    set_tag(cfg, tags.LocalBatchSize, None)
    steps(cfg, 20)
    cfg.evaluation.interval = 10
    cfg.evaluation.n_sequences = 16
    cfg.checkpointer.interval = 10
    cfg.sampler.max_new_tokens = 32

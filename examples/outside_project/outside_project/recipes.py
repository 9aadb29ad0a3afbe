"""A small language model of this project's layers, and a denoiser of images."""

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, training
from nanigpt.models.block import TransformerBlock
from nanigpt.training.trainer import Trainer
from outside_project.denoiser import Denoiser
from outside_project.flow_matching import FlowMatching
from outside_project.layers import LearnedPositionAttention, MeanSquareNorm, ReluSquared
from outside_project.shapes import Shapes
from outside_project.tokenizer import AsciiTokenizer
from outside_project.tracker import CsvTracker

FAMILY = "Outside"


@recipe
def outside_language_model(
    dim: int = 64, n_layers: int = 2, n_heads: int = 4, sequence_length: int = 64
) -> fdl.Config[Trainer]:
    """Train a language model of characters, whose layers are plain modules."""

    def block() -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=fdl.Config(MeanSquareNorm, dim=dim),
            attention=fdl.Config(
                LearnedPositionAttention,
                dim=dim,
                n_heads=n_heads,
                max_sequence_length=2 * sequence_length,
            ),
            feed_forward_norm=fdl.Config(MeanSquareNorm, dim=dim),
            feed_forward=fdl.Config(ReluSquared, dim=dim, hidden_dim=4 * dim),
        )

    model = nodes.decoder(
        layers=[block() for _ in range(n_layers)],
        norm=fdl.Config(MeanSquareNorm, dim=dim),
        dim=dim,
        vocab_size=128,
        tied=False,
        compute_dtype=torch.float32,
    )
    cfg = debugging(model, steps=100)
    cfg.data.tokenizer = fdl.Config(AsciiTokenizer)
    cfg.data.sequence_length = sequence_length
    cfg.trackers = [*cfg.trackers, fdl.Config(CsvTracker, columns=("step", "loss", "val_loss"))]
    return cfg


@recipe
def outside_denoiser(size: int = 8, width: int = 128, steps: int = 300) -> fdl.Config[Trainer]:
    """Train a denoiser of small images by flow matching, in some seconds on a CPU."""
    cfg = training(
        fdl.Config(Denoiser, size=size, width=width),
        fdl.Config(Shapes, size=size),
        fdl.Config(FlowMatching),
        lr=3e-3,
        steps=steps,
        warmup_steps=steps // 10,
        global_batch_size=64,
    )
    cfg.evaluations["val"].interval = 100
    cfg.evaluations["val"].n_samples = 256
    cfg.evaluations["val"].batch_size = 64
    cfg.checkpointer.interval = 100
    columns = ("step", "loss", "val_loss", "val_constant_loss")
    cfg.trackers = [*cfg.trackers, fdl.Config(CsvTracker, columns=columns)]
    return cfg

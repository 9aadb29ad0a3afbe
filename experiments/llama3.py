"""Llama 3: the model as a DAG, and recipes at the published sizes.

Sources of sizes, RoPE and learning rates: The Llama 3 Herd of Models (2024), table 3, and the 3.2
model cards for 1B and 3B.
"""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, pretraining
from nanigpt.experiments.sizes import head_width, sized
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding
from nanigpt.training.trainer import Trainer

FAMILY = "Llama 3"


def llama3_model(
    *,
    dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    hidden_dim: int,
    head_dim: int | None = None,
    vocab_size: int = 128_256,
    sequence_length: int = 8192,
    rope_scaling_factor: float | None = None,
    tied: bool = False,
    compute_dtype: torch.dtype = torch.bfloat16,
    init_scale: float = 1.0,
) -> fdl.Config[Decoder]:
    """Return the decoder as a DAG down to single projections, such as `cfg.layers[7].attention.wq`.

    Layers and initializers are distinct nodes, so that each can differ. The RoPE table and a tied
    embedding are one node that is referenced many times. `experiments/nodes.py` explains the
    initial weights.

    Args:
        dim: Width of the residual stream.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        n_kv_heads: Number of heads of keys and values.
        hidden_dim: Width of the feed-forward networks.
        head_dim: Features of a head; None is `dim / n_heads`.
        vocab_size: Rows of the embedding.
        sequence_length: Positions of the model.
        rope_scaling_factor: Factor by which RoPE extends the original 8192 positions, or None.
        tied: Whether the head shares the embedding's weight.
        compute_dtype: Dtype of activations.
        init_scale: Factor of the initial weights' standard deviations.
    """
    if head_dim is None:
        head_dim = head_width(dim, n_heads)
    scales: dict[str, Any] = {
        "init_scale": init_scale,
        "output_scale": nodes.residual_scale(n_layers, init_scale),
    }
    rope = fdl.Config(
        RotaryEmbedding, head_dim=head_dim, max_sequence_length=sequence_length, theta=500_000.0
    )
    if rope_scaling_factor is not None:
        rope.scaling = fdl.Config(Llama3Scaling, factor=rope_scaling_factor)

    def block() -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=nodes.norm(dim),
            attention=nodes.attention(
                dim=dim,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                head_dim=head_dim,
                rope=rope,
                **scales,
            ),
            feed_forward_norm=nodes.norm(dim),
            feed_forward=nodes.feed_forward(dim=dim, hidden_dim=hidden_dim, **scales),
        )

    return nodes.decoder(
        layers=[block() for _ in range(n_layers)],
        norm=nodes.norm(dim),
        dim=dim,
        vocab_size=vocab_size,
        tied=tied,
        compute_dtype=compute_dtype,
    )


@recipe
@sized(
    llama3_model,
    dim=256,
    n_layers=6,
    n_heads=16,
    n_kv_heads=16,
    hidden_dim=768,
    vocab_size=2048,
    compute_dtype=torch.float32,
)
def llama3_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train 6 M parameters on bytes, in two minutes on two CPU cores."""
    model = llama3_model(**sizes, sequence_length=256)
    cfg = debugging(model, steps=700, sequence_length=sequence_length)
    if not sizes.get("tied"):  # a tied embedding has the initial weights of the head
        cfg.model.embedding.initializer.std = 0.2
    return cfg


@recipe
@sized(
    llama3_model,
    dim=2048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    hidden_dim=8192,
    rope_scaling_factor=32.0,
    tied=True,
)
def llama3_1b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.2 1B, with 1.24 B parameters and tied embeddings."""
    model = llama3_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=256, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(
    llama3_model,
    dim=3072,
    n_layers=28,
    n_heads=24,
    n_kv_heads=8,
    hidden_dim=8192,
    rope_scaling_factor=32.0,
    tied=True,
)
def llama3_3b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.2 3B, with 3.21 B parameters and tied embeddings."""
    model = llama3_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=256, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(
    llama3_model,
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    hidden_dim=14_336,
    rope_scaling_factor=8.0,
)
def llama3_8b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 8B, with 8.03 B parameters."""
    model = llama3_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=512, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(
    llama3_model,
    dim=8192,
    n_layers=80,
    n_heads=64,
    n_kv_heads=8,
    hidden_dim=28_672,
    rope_scaling_factor=8.0,
)
def llama3_70b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 70B, with 70.6 B parameters."""
    model = llama3_model(**sizes)
    return pretraining(
        model,
        lr=1.5e-4,
        global_batch_size=1024,
        local_batch_size=1,
        sequence_length=sequence_length,
    )


@recipe
@sized(
    llama3_model,
    dim=16_384,
    n_layers=126,
    n_heads=128,
    n_kv_heads=8,
    hidden_dim=53_248,
    rope_scaling_factor=8.0,
)
def llama3_405b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 405B, with 405.9 B parameters."""
    model = llama3_model(**sizes)
    return pretraining(
        model, lr=8e-5, global_batch_size=2048, local_batch_size=1, sequence_length=sequence_length
    )

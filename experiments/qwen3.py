"""Qwen3: dense models and mixtures of experts as a DAG, and recipes at the published sizes.

Sources: Qwen3 Technical Report (Yang et al., 2025), table 1, for layers, heads and tied embeddings;
`config.json` of each Qwen/Qwen3-*-Base on the Hugging Face hub for widths, RoPE, norms and
vocabulary. Sequences have 4096 tokens, as in the report's first two stages of pretraining. The
model has the 32,768 positions of the third stage, and its RoPE. Learning rates and batch sizes are
not published; the recipes use common ones for each size.
"""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, pretraining
from nanigpt.experiments.sizes import sized
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.training.trainer import Trainer

FAMILY = "Qwen3"


def qwen3_model(
    *,
    dim: int,
    n_layers: int,
    n_heads: int,
    hidden_dim: int,
    n_experts: int = 0,
    top_k: int = 8,
    n_kv_heads: int = 8,
    head_dim: int = 128,
    vocab_size: int = 151_936,
    sequence_length: int = 32_768,
    tied: bool = False,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> fdl.Config[Decoder]:
    """Return the decoder as a DAG.

    Unlike in Llama 3, each head of queries and keys has a norm, and all heads together need not be
    as wide as the model. `experiments/nodes.py` explains the initial weights.

    Args:
        dim: Width of the residual stream.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        hidden_dim: Width of the feed-forward networks, or of one expert.
        n_experts: Number of experts of each layer; 0 is a dense model.
        top_k: Number of a token's experts.
        n_kv_heads: Number of heads of keys and values.
        head_dim: Features of a head.
        vocab_size: Rows of the embedding.
        sequence_length: Positions of the model.
        tied: Whether the head shares the embedding's weight.
        compute_dtype: Dtype of activations.
    """
    output_scale = nodes.residual_scale(n_layers)
    rope = fdl.Config(
        RotaryEmbedding, head_dim=head_dim, max_sequence_length=sequence_length, theta=1_000_000.0
    )

    def norm(dim: int) -> fdl.Config:
        return nodes.norm(dim, eps=1e-6)

    def feed_forward() -> fdl.Config:
        sizes: dict[str, Any] = {"dim": dim, "hidden_dim": hidden_dim, "output_scale": output_scale}
        if not n_experts:
            return nodes.feed_forward(**sizes)
        return nodes.mixture_of_experts(
            **sizes, n_experts=n_experts, top_k=top_k, scores="softmax", normalize=True
        )

    def block() -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=norm(dim),
            attention=nodes.attention(
                dim=dim,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                head_dim=head_dim,
                rope=rope,
                q_norm=norm(head_dim),
                k_norm=norm(head_dim),
                output_scale=output_scale,
            ),
            feed_forward_norm=norm(dim),
            feed_forward=feed_forward(),
        )

    return nodes.decoder(
        layers=[block() for _ in range(n_layers)],
        norm=norm(dim),
        dim=dim,
        vocab_size=vocab_size,
        tied=tied,
        compute_dtype=compute_dtype,
    )


@recipe
@sized(
    qwen3_model,
    dim=256,
    n_layers=6,
    n_heads=16,
    n_kv_heads=8,
    hidden_dim=768,
    tied=True,
    head_dim=32,
    vocab_size=2048,
    compute_dtype=torch.float32,
)
def qwen3_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train 6 M parameters on bytes, in two minutes on two CPU cores."""
    model = qwen3_model(**sizes, sequence_length=256)
    return debugging(model, steps=600, sequence_length=sequence_length)


@recipe
@sized(
    qwen3_model,
    dim=256,
    n_layers=4,
    n_heads=8,
    n_kv_heads=4,
    hidden_dim=192,
    n_experts=16,
    top_k=4,
    head_dim=32,
    vocab_size=2048,
    compute_dtype=torch.float32,
)
def qwen3_moe_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train 11 M parameters (4 M for each token) on bytes, in minutes on two CPU cores."""
    model = qwen3_model(**sizes, sequence_length=256)
    return debugging(model, steps=600, sequence_length=sequence_length)


@recipe
@sized(qwen3_model, dim=1024, n_layers=28, n_heads=16, hidden_dim=3072, tied=True)
def qwen3_0_6b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 0.6B, with 596 M parameters and tied embeddings."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=6e-4, global_batch_size=512, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=2048, n_layers=28, n_heads=16, hidden_dim=6144, tied=True)
def qwen3_1_7b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 1.7B, with 1.72 B parameters and tied embeddings."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=4e-4, global_batch_size=512, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=2560, n_layers=36, n_heads=32, hidden_dim=9728, tied=True)
def qwen3_4b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 4B, with 4.02 B parameters, tied embeddings, and heads wider than the model."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=1024, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=4096, n_layers=36, n_heads=32, hidden_dim=12_288)
def qwen3_8b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 8B, with 8.19 B parameters."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=1024, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=5120, n_layers=40, n_heads=40, hidden_dim=17_408)
def qwen3_14b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 14B, with 14.8 B parameters."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=2e-4, global_batch_size=1024, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=5120, n_layers=64, n_heads=64, hidden_dim=25_600)
def qwen3_32b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 32B, with 32.8 B parameters and heads wider than the model."""
    model = qwen3_model(**sizes)
    return pretraining(
        model,
        lr=1.5e-4,
        global_batch_size=2048,
        local_batch_size=1,
        sequence_length=sequence_length,
    )


@recipe
@sized(qwen3_model, dim=2048, n_layers=48, n_heads=32, n_kv_heads=4, hidden_dim=768, n_experts=128)
def qwen3_30b_a3b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 30B-A3B, with 30.5 B parameters (3.3 B for each token)."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=4e-4, global_batch_size=1024, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(qwen3_model, dim=4096, n_layers=94, n_heads=64, n_kv_heads=4, hidden_dim=1536, n_experts=128)
def qwen3_235b_a22b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Qwen3 235B-A22B, with 235 B parameters (22 B for each token)."""
    model = qwen3_model(**sizes)
    return pretraining(
        model, lr=2e-4, global_batch_size=2048, local_batch_size=1, sequence_length=sequence_length
    )

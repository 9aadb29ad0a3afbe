"""GPT-OSS: the model as a DAG, and recipes at the published sizes.

Sources of sizes, windows, RoPE and the experts' activation: gpt-oss-120b & gpt-oss-20b Model Card
(OpenAI, 2025), section 2; `config.json` of openai/gpt-oss-20b and openai/gpt-oss-120b on the
Hugging Face hub; and transformers' `GptOssConfig`, whose defaults are those of the larger model.

Sequences have 4096 tokens, which YaRN extends to the model's 131,072 positions. Learning rates,
batch sizes, and initial biases and sinks are not published. The recipes use common learning rates
and batch sizes for each size, and biases and sinks start at 0.
"""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, pretraining
from nanigpt.experiments.sizes import sized
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.attention import Attention
from nanigpt.models.attention_extras import AttentionSink
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.rope import RotaryEmbedding, YarnScaling
from nanigpt.training.trainer import Trainer

FAMILY = "GPT-OSS"


def gpt_oss_model(
    *,
    n_layers: int,
    n_experts: int,
    top_k: int = 4,
    dim: int = 2880,
    n_heads: int = 64,
    n_kv_heads: int = 8,
    head_dim: int = 64,
    hidden_dim: int = 2880,
    window: int = 128,
    vocab_size: int = 201_088,
    sequence_length: int = 131_072,
    rope_scaling_factor: float = 32.0,
    original_max_positions: int = 4096,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> fdl.Config[Decoder]:
    """Return the decoder as a DAG of attention with sinks and mixtures of experts, all with biases.

    The first layer, and then every other one, sees a window. The weights of a token's experts are a
    softmax over their scores only, which equals the softmax over all scores, divided by its sum
    over these experts. `experiments/nodes.py` explains the initial weights.

    Args:
        n_layers: Number of layers.
        n_experts: Number of experts of each layer.
        top_k: Number of a token's experts.
        dim: Width of the residual stream.
        n_heads: Number of attention heads.
        n_kv_heads: Number of heads of keys and values.
        head_dim: Features of a head.
        hidden_dim: Width of each expert.
        window: Positions that a query sees in layers with a window.
        vocab_size: Rows of the embedding.
        sequence_length: Positions of the model.
        rope_scaling_factor: Factor by which YaRN extends `original_max_positions`.
        original_max_positions: Longest sequence of the original pretraining.
        compute_dtype: Dtype of activations.
    """
    output_scale = nodes.residual_scale(n_layers)
    rope = fdl.Config(
        RotaryEmbedding,
        head_dim=head_dim,
        max_sequence_length=sequence_length,
        theta=150_000.0,
        scaling=fdl.Config(
            YarnScaling,
            factor=rope_scaling_factor,
            original_max_positions=original_max_positions,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
        ),
    )

    def attention(**kind: Any) -> fdl.Config[Attention]:
        return nodes.attention(
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            output_scale=output_scale,
            bias=True,
            rope=rope,
            sink=fdl.Config(AttentionSink, n_heads=n_heads, initializer=nodes.zero()),
            **kind,
        )

    def mixture() -> fdl.Config[MixtureOfExperts]:
        activation = fdl.Config(ClampedSwiGLU, alpha=1.702, limit=7.0)
        return nodes.mixture_of_experts(
            dim=dim,
            n_experts=n_experts,
            top_k=top_k,
            hidden_dim=hidden_dim,
            output_scale=output_scale,
            scores="softmax",
            normalize=True,
            bias=nodes.zero(),
            experts={"bias": nodes.zero(), "activation": activation},
        )

    def block(i: int) -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=nodes.norm(dim),
            attention=attention(window=window) if i % 2 == 0 else attention(),
            feed_forward_norm=nodes.norm(dim),
            feed_forward=mixture(),
        )

    return nodes.decoder(
        layers=[block(i) for i in range(n_layers)],
        norm=nodes.norm(dim),
        dim=dim,
        vocab_size=vocab_size,
        tied=False,
        compute_dtype=compute_dtype,
    )


@recipe
@sized(
    gpt_oss_model,
    n_layers=4,
    n_experts=16,
    dim=256,
    n_heads=16,
    n_kv_heads=4,
    head_dim=32,
    hidden_dim=128,
    window=32,
    vocab_size=2048,
    rope_scaling_factor=2.0,
    original_max_positions=128,
    compute_dtype=torch.float32,
)
def gpt_oss_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train 9 M parameters (4 M for each token) on bytes, in minutes on two CPU cores.

    Windows are shorter than sequences, and YaRN extends the length of the training sequences.
    """
    model = gpt_oss_model(**sizes, sequence_length=256)
    return debugging(model, steps=600, sequence_length=sequence_length)


@recipe
@sized(gpt_oss_model, n_layers=24, n_experts=32)
def gpt_oss_20b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train gpt-oss-20b, with 20.9 B parameters (3.6 B for each token)."""
    model = gpt_oss_model(**sizes)
    return pretraining(
        model, lr=4e-4, global_batch_size=1024, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(gpt_oss_model, n_layers=36, n_experts=128)
def gpt_oss_120b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train gpt-oss-120b, with 117 B parameters (5.1 B for each token)."""
    model = gpt_oss_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=2048, local_batch_size=1, sequence_length=sequence_length
    )

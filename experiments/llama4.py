"""Llama 4: text models as a DAG, and recipes at the published sizes.

Sources of layers, heads, widths, experts, vocabulary, chunks, norms and temperature: `config.json`
(`text_config`) of meta-llama/Llama-4-Scout-17B-16E and Llama-4-Maverick-17B-128E on the Hugging
Face hub, and the defaults of transformers' `Llama4TextConfig`, which are Scout's. Only Scout scales
RoPE, by 16 for wavelengths above 8192 positions: `models/llama4/args.py` of
meta-llama/llama-models. The models have the 262,144 positions of the published base models; the
instruction-tuned ones have more.

Sequences have 8192 tokens, which is one chunk. Learning rates and batch sizes are not published;
the recipes use common ones for the size.
"""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, pretraining
from nanigpt.experiments.sizes import sized
from nanigpt.models.attention import Attention
from nanigpt.models.attention_extras import AttentionTemperature
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding
from nanigpt.training.trainer import Trainer

FAMILY = "Llama 4"


def llama4_model(
    *,
    n_experts: int,
    mixture_interval: int,
    qk_norm: bool,
    rope_scaling_factor: float | None = None,
    dim: int = 5120,
    n_layers: int = 48,
    n_heads: int = 40,
    n_kv_heads: int = 8,
    head_dim: int = 128,
    hidden_dim: int = 8192,
    dense_hidden_dim: int = 16_384,
    chunk: int = 8192,
    vocab_size: int = 202_048,
    sequence_length: int = 262_144,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> fdl.Config[Decoder]:
    """Return the decoder as a DAG with layers of several kinds.

    Every fourth layer sees all earlier positions and has no RoPE, but a temperature that depends on
    position. The others have RoPE and see their chunk. A token goes through one expert, whose
    weight multiplies its input, and through a shared one. `experiments/nodes.py` explains the
    initial weights.

    Args:
        n_experts: Number of experts of each mixture.
        mixture_interval: Distance between layers that have a mixture of experts; 1 is all layers.
        qk_norm: Whether to normalize heads of queries and keys in layers with RoPE. The published
            models normalize after RoPE, and these before it. Both are the same, since a norm
            without gains changes only lengths, and RoPE changes only directions.
        rope_scaling_factor: Factor by which RoPE extends the original 8192 positions, or None.
        dim: Width of the residual stream.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        n_kv_heads: Number of heads of keys and values.
        head_dim: Features of a head.
        hidden_dim: Width of each expert, and of the shared one.
        dense_hidden_dim: Width of feed-forward networks in layers without experts.
        chunk: Positions of a chunk, and of one step of the temperature.
        vocab_size: Rows of the embedding.
        sequence_length: Positions of the model.
        compute_dtype: Dtype of activations.
    """
    if mixture_interval < 1:
        raise UsageError(f"mixture_interval={mixture_interval}: expected at least 1")
    output_scale = nodes.residual_scale(n_layers)
    rope = fdl.Config(
        RotaryEmbedding, head_dim=head_dim, max_sequence_length=sequence_length, theta=500_000.0
    )
    if rope_scaling_factor is not None:
        rope.scaling = fdl.Config(Llama3Scaling, factor=rope_scaling_factor, high_freq_factor=1.0)

    def attention(*, local: bool) -> fdl.Config[Attention]:
        kind: dict[str, Any] = {"rope": rope, "chunk": chunk}
        if not local:
            temperature = fdl.Config(AttentionTemperature, scale=0.1, floor_scale=chunk)
            kind = {"rope": None, "temperature": temperature}
        elif qk_norm:
            for name in ("q_norm", "k_norm"):
                kind[name] = fdl.Config(RMSNorm, dim=head_dim, initializer=None, eps=1e-5)
        return nodes.attention(
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            output_scale=output_scale,
            **kind,
        )

    def feed_forward(*, mixture: bool) -> fdl.Config[FeedForward | MixtureOfExperts]:
        if not mixture:
            return nodes.feed_forward(
                dim=dim, hidden_dim=dense_hidden_dim, output_scale=output_scale
            )
        return nodes.mixture_of_experts(
            dim=dim,
            n_experts=n_experts,
            top_k=1,
            hidden_dim=hidden_dim,
            shared_dim=hidden_dim,
            output_scale=output_scale,
            scores="sigmoid",
            experts={"weighs": "inputs"},
        )

    def block(i: int) -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=nodes.norm(dim),
            attention=attention(local=(i + 1) % 4 != 0),
            feed_forward_norm=nodes.norm(dim),
            feed_forward=feed_forward(mixture=(i + 1) % mixture_interval == 0),
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
    llama4_model,
    n_experts=8,
    mixture_interval=2,
    qk_norm=True,
    dim=256,
    n_layers=4,
    n_heads=8,
    n_kv_heads=4,
    head_dim=32,
    hidden_dim=384,
    dense_hidden_dim=768,
    chunk=32,
    vocab_size=2048,
    compute_dtype=torch.float32,
)
def llama4_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train 8 M parameters (4 M for each token) on bytes, in minutes on two CPU cores.

    The model has each kind of layer, and chunks that are shorter than sequences.
    """
    model = llama4_model(**sizes, sequence_length=256)
    return debugging(model, steps=600, sequence_length=sequence_length)


@recipe
@sized(llama4_model, n_experts=16, mixture_interval=1, qk_norm=True, rope_scaling_factor=16.0)
def llama4_scout(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 4 Scout (17B-16E), with 108 B parameters (17 B for each token)."""
    model = llama4_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=2048, local_batch_size=1, sequence_length=sequence_length
    )


@recipe
@sized(llama4_model, n_experts=128, mixture_interval=2, qk_norm=False)
def llama4_maverick(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 4 Maverick (17B-128E), with 400 B parameters (17 B for each token)."""
    model = llama4_model(**sizes)
    return pretraining(
        model, lr=3e-4, global_batch_size=2048, local_batch_size=1, sequence_length=sequence_length
    )

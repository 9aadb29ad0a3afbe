"""Parts of a model as components: `set:model.layers[*].attention_norm=@layer_norm(dim=256)`.

Initial weights are those of `nodes.py`. The scale of weights that write to the residual stream is 1
in a new part; `tag:ResidualScale` sets it, and the fiddler `depth` changes it.
"""

from collections.abc import Callable
from functools import partial

import fiddle as fdl

from nanigpt.config.registry import component
from nanigpt.experiments import nodes
from nanigpt.experiments.parts import fits, part
from nanigpt.experiments.sizes import head_width
from nanigpt.models.activation import SwiGLU
from nanigpt.models.attention import Attention
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.block import ParallelBlock, TransformerBlock
from nanigpt.models.embedding import Embedding, Head
from nanigpt.models.feed_forward import MLP, FeedForward
from nanigpt.models.init import Constant, FanInNormal, TruncatedNormal
from nanigpt.models.latent_attention import LatentAttention
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.moe.router import Router
from nanigpt.models.norm import LayerNorm, RMSNorm
from nanigpt.models.positions import LearnedPositions
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding

PROJECTIONS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "wq_a", "wq_b", "wkv_a", "wkv_b")


def normal(std: float) -> Callable[[], fdl.Config[TruncatedNormal]]:
    """Return a function that makes the initializer."""
    return partial(fdl.Config, TruncatedNormal, std=std)


def fan_in(scale: float = 1.0) -> Callable[[], fdl.Config[FanInNormal]]:
    """Return a function that makes the initializer."""
    return partial(fdl.Config, FanInNormal, scale=scale)


one = partial(fdl.Config, Constant, value=1.0)

part("truncated_normal", TruncatedNormal)
part("fan_in_normal", FanInNormal)
part("constant", Constant)

part("rms_norm", RMSNorm, slots=("norm",), initializer=one)
part("layer_norm", LayerNorm, slots=("norm",), initializer=one, bias=nodes.zero)
part("projection", Linear, slots=PROJECTIONS, initializer=fan_in())
part("embedding", Embedding, slots=("embedding",), initializer=normal(0.02))
part("head", Head, slots=("head",), initializer=fan_in(0.5))
part("learned_positions", LearnedPositions, slots=("positions",), initializer=normal(0.01))

part("swiglu", SwiGLU)
part("router", Router, initializer=fan_in())
part(
    "experts",
    Experts,
    initializer=fan_in(),
    output_initializer=partial(nodes.residual_initializer, 1.0),
)

part("attention_sink", AttentionSink, initializer=nodes.zero)
part("attention_temperature", AttentionTemperature, slots=("temperature",))
part("rotary_embedding", RotaryEmbedding, slots=("rope",))
part("llama3_scaling", Llama3Scaling)


@component
@fits("attention")
def attention(
    dim: int,
    n_heads: int,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    positions: int | None = None,
    theta: float = 500_000.0,
    bias: bool = False,
    window: int | None = None,
    chunk: int | None = None,
) -> fdl.Config[Attention]:
    """Use attention with grouped queries, and with a RoPE table of its own.

    Args:
        dim: Width of the residual stream.
        n_heads: Number of heads.
        n_kv_heads: Number of heads of keys and values; None is `n_heads`.
        head_dim: Features of a head; None is `dim / n_heads`.
        positions: Positions of the RoPE table; None is attention without RoPE.
        theta: Base of RoPE's wavelengths.
        bias: Whether projections have biases.
        window: Positions that a query sees, or None.
        chunk: Positions of a chunk, or None.
    """
    if head_dim is None:
        head_dim = head_width(dim, n_heads)
    rope = None
    if positions is not None:
        rope = fdl.Config(
            RotaryEmbedding, head_dim=head_dim, max_sequence_length=positions, theta=theta
        )
    return nodes.attention(
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
        head_dim=head_dim,
        output_scale=1.0,
        bias=bias,
        rope=rope,
        window=window,
        chunk=chunk,
    )


@component
@fits("attention")
def latent_attention(
    dim: int,
    n_heads: int,
    positions: int,
    kv_lora_rank: int = 512,
    q_lora_rank: int | None = None,
    nope_head_dim: int = 128,
    rope_head_dim: int = 64,
    v_head_dim: int = 128,
    theta: float = 10_000.0,
) -> fdl.Config[LatentAttention]:
    """Use multi-head latent attention, with a RoPE table of its own for so many positions."""
    return nodes.latent_attention(
        dim=dim,
        n_heads=n_heads,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=kv_lora_rank,
        nope_head_dim=nope_head_dim,
        v_head_dim=v_head_dim,
        rope=fdl.Config(
            RotaryEmbedding, head_dim=rope_head_dim, max_sequence_length=positions, theta=theta
        ),
        output_scale=1.0,
    )


@component
@fits("feed_forward", "shared")
def feed_forward(dim: int, hidden_dim: int) -> fdl.Config[FeedForward]:
    """Use a gated network of three matrices, which is SwiGLU until `activation` is set."""
    return nodes.feed_forward(dim=dim, hidden_dim=hidden_dim, output_scale=1.0)


@component
@fits("feed_forward", "shared")
def mlp(dim: int, hidden_dim: int, bias: bool = False) -> fdl.Config[MLP]:
    """Use a network of two matrices, with GELU until `activation` is set."""
    return nodes.mlp(dim=dim, hidden_dim=hidden_dim, output_scale=1.0, bias=bias)


@component
@fits("feed_forward")
def mixture_of_experts(
    dim: int, hidden_dim: int, n_experts: int, top_k: int, shared_dim: int | None = None
) -> fdl.Config[MixtureOfExperts]:
    """Use a mixture of experts, with a shared network of width `shared_dim` if it is given."""
    return nodes.mixture_of_experts(
        dim=dim,
        n_experts=n_experts,
        top_k=top_k,
        hidden_dim=hidden_dim,
        output_scale=1.0,
        shared_dim=shared_dim,
    )


@component
@fits("layers", "block")
def transformer_block(
    dim: int, n_heads: int, hidden_dim: int, positions: int | None = None
) -> fdl.Config[TransformerBlock]:
    """Use a block of attention and a gated network, each after a norm."""
    return fdl.Config(
        TransformerBlock,
        attention_norm=nodes.norm(dim),
        attention=attention(dim, n_heads, positions=positions),
        feed_forward_norm=nodes.norm(dim),
        feed_forward=feed_forward(dim, hidden_dim),
    )


@component
@fits("layers", "block")
def parallel_block(
    dim: int, n_heads: int, hidden_dim: int, positions: int | None = None
) -> fdl.Config[ParallelBlock]:
    """Use a block whose attention and gated network read the same norm."""
    return fdl.Config(
        ParallelBlock,
        attention_norm=nodes.norm(dim),
        attention=attention(dim, n_heads, positions=positions),
        feed_forward=feed_forward(dim, hidden_dim),
    )

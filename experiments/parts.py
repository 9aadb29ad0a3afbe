"""Parts of decoders as DAG nodes, which the families share.

Each call makes new nodes, so that every projection of every layer can differ. What is to be shared
(a RoPE table) is passed in.

Weights start truncated normal with standard deviation `scale / sqrt(fan_in)`, which keeps
activations alike at every width.
"""

import copy
import math
from typing import Any

import fiddle as fdl
import torch

from nanigpt.models.attention import Attention
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import Embedding, Head, TiedHead
from nanigpt.models.feed_forward import MLP, FeedForward
from nanigpt.models.init import Constant, FanInNormal, TruncatedNormal
from nanigpt.models.latent_attention import LatentAttention
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.moe.router import Router
from nanigpt.models.multi_token import MultiTokenPrediction, PredictionDepth
from nanigpt.models.norm import LayerNorm, RMSNorm
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.tags import VocabSize, Width


def residual_scale(n_layers: int, init_scale: float = 1.0) -> float:
    """Of projections that write to the residual stream: the sum of 2 n_layers of them is then as
    large as one (Radford et al., 2019)."""
    return init_scale / math.sqrt(2 * n_layers)


def linear(
    in_dim: int, out_dim: int, scale: float = 1.0, *, bias: bool = False
) -> fdl.Config[Linear]:
    """A projection; its bias, if it has one, starts at 0."""
    initializer = fdl.Config(FanInNormal, scale=scale)
    cfg = fdl.Config(Linear, in_dim=in_dim, out_dim=out_dim, initializer=initializer)
    if bias:
        cfg.bias = zero()
    return cfg


def zero() -> fdl.Config[Constant]:
    """Where biases start."""
    return fdl.Config(Constant, value=0.0)


def norm(dim: int, **arguments: Any) -> fdl.Config[RMSNorm]:
    """RMSNorm whose gain starts at 1."""
    return fdl.Config(RMSNorm, dim=dim, initializer=fdl.Config(Constant, value=1.0), **arguments)


def layer_norm(dim: int, *, bias: bool = True, **arguments: Any) -> fdl.Config[LayerNorm]:
    """LayerNorm whose gain starts at 1, and whose bias, if it has one, at 0."""
    cfg = fdl.Config(LayerNorm, dim=dim, initializer=fdl.Config(Constant, value=1.0), **arguments)
    if bias:
        cfg.bias = zero()
    return cfg


def attention(
    *,
    dim: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    output_scale: float,
    init_scale: float = 1.0,
    bias: bool = False,
    **arguments: Any,
) -> fdl.Config[Attention]:
    """Attention with its four projections; `arguments` are further ones of `Attention`."""
    return fdl.Config(
        Attention,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        wq=linear(dim, n_heads * head_dim, init_scale, bias=bias),
        wk=linear(dim, n_kv_heads * head_dim, init_scale, bias=bias),
        wv=linear(dim, n_kv_heads * head_dim, init_scale, bias=bias),
        wo=linear(n_heads * head_dim, dim, output_scale, bias=bias),
        **arguments,
    )


def latent_attention(
    *,
    dim: int,
    n_heads: int,
    q_lora_rank: int | None,
    kv_lora_rank: int,
    nope_head_dim: int,
    v_head_dim: int,
    rope: fdl.Config[RotaryEmbedding],
    output_scale: float,
    init_scale: float = 1.0,
    eps: float = 1e-6,
    **arguments: Any,
) -> fdl.Config[LatentAttention]:
    """Latent attention with its projections and norms; `arguments` are further ones.

    Args:
        q_lora_rank: features of the latent that queries are made of; None: they are made at once.
        rope: says how many features of each head are rotated.
        eps: of both norms.
    """
    q_dim = n_heads * (nope_head_dim + rope.head_dim)
    if q_lora_rank is None:
        queries = {"wq": linear(dim, q_dim, init_scale)}
    else:
        queries = {
            "wq_a": linear(dim, q_lora_rank, init_scale),
            "q_norm": norm(q_lora_rank, eps=eps),
            "wq_b": linear(q_lora_rank, q_dim, init_scale),
        }
    return fdl.Config(
        LatentAttention,
        n_heads=n_heads,
        nope_head_dim=nope_head_dim,
        v_head_dim=v_head_dim,
        **queries,
        wkv_a=linear(dim, kv_lora_rank + rope.head_dim, init_scale),
        kv_norm=norm(kv_lora_rank, eps=eps),
        wkv_b=linear(kv_lora_rank, n_heads * (nope_head_dim + v_head_dim), init_scale),
        wo=linear(n_heads * v_head_dim, dim, output_scale),
        rope=rope,
        **arguments,
    )


def feed_forward(
    *,
    dim: int,
    hidden_dim: int,
    output_scale: float,
    init_scale: float = 1.0,
    **arguments: Any,
) -> fdl.Config[FeedForward]:
    """A gated network with its three projections; SwiGLU unless it is given an `activation`."""
    return fdl.Config(
        FeedForward,
        w1=linear(dim, hidden_dim, init_scale),
        w2=linear(hidden_dim, dim, output_scale),
        w3=linear(dim, hidden_dim, init_scale),
        **arguments,
    )


def mlp(
    *,
    dim: int,
    hidden_dim: int,
    output_scale: float,
    init_scale: float = 1.0,
    bias: bool = False,
    **arguments: Any,
) -> fdl.Config[MLP]:
    """A network of two projections; GELU unless it is given an `activation`."""
    return fdl.Config(
        MLP,
        w1=linear(dim, hidden_dim, init_scale, bias=bias),
        w2=linear(hidden_dim, dim, output_scale, bias=bias),
        **arguments,
    )


def mixture_of_experts(
    *,
    dim: int,
    n_experts: int,
    top_k: int,
    hidden_dim: int,
    output_scale: float,
    init_scale: float = 1.0,
    shared_dim: int | None = None,
    experts: dict[str, Any] | None = None,
    **router: Any,
) -> fdl.Config[MixtureOfExperts]:
    """Router, experts, and those that all tokens share, if they have a `shared_dim`.

    Args:
        experts: further arguments of `Experts`.
        router: further arguments of `Router`.
    """
    shared = None
    if shared_dim is not None:
        shared = feed_forward(
            dim=dim, hidden_dim=shared_dim, output_scale=output_scale, init_scale=init_scale
        )
    return fdl.Config(
        MixtureOfExperts,
        router=fdl.Config(
            Router,
            dim=dim,
            n_experts=n_experts,
            top_k=top_k,
            initializer=fdl.Config(FanInNormal, scale=init_scale),
            **router,
        ),
        experts=fdl.Config(
            Experts,
            n_experts=n_experts,
            dim=dim,
            hidden_dim=hidden_dim,
            initializer=fdl.Config(FanInNormal, scale=init_scale),
            output_initializer=fdl.Config(FanInNormal, scale=output_scale),
            **(experts or {}),
        ),
        shared=shared,
    )


def multi_token_prediction(
    *,
    blocks: list[fdl.Config[TransformerBlock]],
    norm: fdl.Config[RMSNorm],
    loss_weight: float = 0.3,
) -> fdl.Config[MultiTokenPrediction]:
    """Predictions of further tokens: the argument `multi_token` of a decoder.

    Args:
        blocks: one for each further token.
        norm: one of the decoder's, which those here are like.
    """
    dim = norm.dim

    def depth(block: fdl.Config[TransformerBlock]) -> fdl.Config[PredictionDepth]:
        return fdl.Config(
            PredictionDepth,
            embedding_norm=copy.deepcopy(norm),
            hidden_norm=copy.deepcopy(norm),
            projection=linear(2 * dim, dim),
            block=block,
            norm=copy.deepcopy(norm),
        )

    depths = [depth(block) for block in blocks]
    return fdl.Config(MultiTokenPrediction, depths=depths, loss_weight=loss_weight)


def decoder(
    *,
    layers: list[fdl.Config[TransformerBlock]],
    norm: fdl.Config[RMSNorm],
    dim: int,
    vocab_size: int,
    tied: bool,
    compute_dtype: torch.dtype,
    soft_cap: float | None = None,
) -> fdl.Config[Decoder]:
    """Embedding, blocks, norm and head; a tied embedding is one node that the head refers to.

    The head starts with logits of standard deviation 0.5, which puts the first loss near
    ln(vocab_size).

    Args:
        soft_cap: bound of the logits, or None.
    """
    head_initializer = fdl.Config(FanInNormal, scale=0.5)
    embedding = fdl.Config(
        Embedding,
        vocab_size=vocab_size,
        dim=dim,
        compute_dtype=compute_dtype,
        initializer=head_initializer if tied else fdl.Config(TruncatedNormal, std=0.02),
    )
    if tied:
        head = fdl.Config(TiedHead, embedding=embedding, soft_cap=soft_cap)
    elif soft_cap is not None:
        head = fdl.Config(
            Head,
            in_dim=dim,
            out_dim=vocab_size,
            initializer=head_initializer,
            soft_cap=soft_cap,
        )
    else:
        head = fdl.Config(Linear, in_dim=dim, out_dim=vocab_size, initializer=head_initializer)
        fdl.remove_tag(head, "out_dim", Width)
        fdl.add_tag(head, "out_dim", VocabSize)
    return fdl.Config(Decoder, embedding=embedding, layers=layers, norm=norm, head=head)

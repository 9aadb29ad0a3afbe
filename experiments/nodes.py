"""DAG nodes of decoders that all families use.

Each call makes new nodes, so that every projection of every layer can differ. A node that is to be
shared, such as a RoPE table, is passed in.

Initial weights are truncated normal with standard deviation `scale / sqrt(fan_in)`, so that
activations have the same size at every width.
"""

import copy
import math
from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish

from nanigpt.errors import UsageError
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
from nanigpt.models.rope import RotaryEmbedding, YarnScaling
from nanigpt.tags import ResidualScale, SequenceLength, VocabSize, Width


def residual_scale(n_layers: int, init_scale: float = 1.0) -> float:
    """Return the scale of projections that write to the residual stream.

    With it, the sum of all 2 n_layers of them is as large as a single one (Radford et al., 2019).

    Raises:
        UsageError: There is no layer.
    """
    if n_layers < 1:
        raise UsageError(f"n_layers={n_layers}: expected at least 1")
    return init_scale / math.sqrt(2 * n_layers)


def residual_initializer(scale: float) -> fdl.Config[FanInNormal]:
    """Return the initializer of a weight that writes to the residual stream.

    Its scale has a tag, by which the fiddler `depth` finds it.
    """
    cfg = fdl.Config(FanInNormal, scale=scale)
    fdl.add_tag(cfg, "scale", ResidualScale)
    return cfg


def linear(
    in_dim: int, out_dim: int, scale: float = 1.0, *, bias: bool = False
) -> fdl.Config[Linear]:
    """Return a projection, whose bias starts at 0 if it has one."""
    initializer = fdl.Config(FanInNormal, scale=scale)
    cfg = fdl.Config(Linear, in_dim=in_dim, out_dim=out_dim, initializer=initializer)
    if bias:
        cfg.bias = zero()
    return cfg


def output(in_dim: int, out_dim: int, scale: float, *, bias: bool = False) -> fdl.Config[Linear]:
    """Return a projection that writes to the residual stream."""
    cfg = linear(in_dim, out_dim, bias=bias)
    cfg.initializer = residual_initializer(scale)
    return cfg


def zero() -> fdl.Config[Constant]:
    """Return the initializer of biases."""
    return fdl.Config(Constant, value=0.0)


def norm(dim: int, **arguments: Any) -> fdl.Config[RMSNorm]:
    """Return RMSNorm with a gain that starts at 1."""
    return fdl.Config(RMSNorm, dim=dim, initializer=fdl.Config(Constant, value=1.0), **arguments)


def layer_norm(dim: int, *, bias: bool = True, **arguments: Any) -> fdl.Config[LayerNorm]:
    """Return LayerNorm. Its gain starts at 1, and its bias, if it has one, starts at 0."""
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
    """Return attention with its four projections.

    Args:
        dim: Width of the residual stream.
        n_heads: Number of heads.
        n_kv_heads: Number of heads of keys and values.
        head_dim: Features of a head.
        output_scale: Scale of the output projection's initial weights.
        init_scale: Scale of the other projections' initial weights.
        bias: Whether projections have biases.
        **arguments: Further arguments of `Attention`.
    """
    return fdl.Config(
        Attention,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        wq=linear(dim, n_heads * head_dim, init_scale, bias=bias),
        wk=linear(dim, n_kv_heads * head_dim, init_scale, bias=bias),
        wv=linear(dim, n_kv_heads * head_dim, init_scale, bias=bias),
        wo=output(n_heads * head_dim, dim, output_scale, bias=bias),
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
    """Return latent attention with its projections and norms.

    Args:
        dim: Width of the residual stream.
        n_heads: Number of heads.
        q_lora_rank: Features of the latent of queries. None computes queries directly.
        kv_lora_rank: Features of the latent of keys and values.
        nope_head_dim: Features of a head's queries and keys that RoPE does not rotate.
        v_head_dim: Features of a head's values.
        rope: Rotary embedding; its `head_dim` is the number of features that it rotates.
        output_scale: Scale of the output projection's initial weights.
        init_scale: Scale of the other projections' initial weights.
        eps: eps of both norms.
        **arguments: Further arguments of `LatentAttention`.
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
        wo=output(n_heads * v_head_dim, dim, output_scale),
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
    """Return a gated network with its three projections, which is SwiGLU by default.

    Args:
        dim: Width of the residual stream.
        hidden_dim: Width of the network.
        output_scale: Scale of the output projection's initial weights.
        init_scale: Scale of the other projections' initial weights.
        **arguments: Further arguments of `FeedForward`, such as `activation`.
    """
    return fdl.Config(
        FeedForward,
        w1=linear(dim, hidden_dim, init_scale),
        w2=output(hidden_dim, dim, output_scale),
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
    """Return a network of two projections, with GELU by default."""
    return fdl.Config(
        MLP,
        w1=linear(dim, hidden_dim, init_scale, bias=bias),
        w2=output(hidden_dim, dim, output_scale, bias=bias),
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
    """Return a mixture: router, experts, and a shared network if `shared_dim` is given.

    Args:
        dim: Width of the residual stream.
        n_experts: Number of experts.
        top_k: Number of a token's experts.
        hidden_dim: Width of one expert.
        output_scale: Scale of the output projections' initial weights.
        init_scale: Scale of all other initial weights.
        shared_dim: Width of the network that every token goes through, or None.
        experts: Further arguments of `Experts`.
        **router: Further arguments of `Router`.
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
            output_initializer=residual_initializer(output_scale),
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
    """Return predictions of further tokens, for the argument `multi_token` of a decoder.

    Args:
        blocks: One block for each further token.
        norm: A norm of the decoder, of which all norms here are copies.
        loss_weight: Weight of the mean of their losses.
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
    """Return a decoder of embedding, blocks, norm and head.

    A tied embedding is one node that the head refers to. The head's initial weights give logits
    with standard deviation 0.5, so the first loss is near ln(vocab_size).

    Args:
        layers: Blocks.
        norm: The norm before the head.
        dim: Width of the residual stream.
        vocab_size: Rows of the embedding.
        tied: Whether the head shares the embedding's weight.
        compute_dtype: Dtype of activations.
        soft_cap: Bound of the logits, or None.
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


def reach(model: fdl.Config[Any], n: int) -> None:
    """Give a model at least n positions: tables of RoPE and of learned positions grow.

    The scaling of RoPE stays, since it belongs to the weights.

    Raises:
        UsageError: YaRN does not extend RoPE that far.
    """
    for node, _ in daglish.iterate(model):
        if isinstance(node, fdl.Buildable):
            for name, tags in node.__argument_tags__.items():
                if SequenceLength in tags and getattr(node, name) < n:
                    _check_yarn(getattr(node, "scaling", None), n)
                    setattr(node, name, n)


def _check_yarn(scaling: Any, n: int) -> None:
    if isinstance(scaling, fdl.Buildable) and fdl.get_callable(scaling) is YarnScaling:
        most = int(scaling.original_max_positions * scaling.factor)
        if n > most:
            raise UsageError(
                f"{n} positions: expected at most {most}, since YaRN extends "
                f"{scaling.original_max_positions} positions by a factor of {scaling.factor:g}"
            )

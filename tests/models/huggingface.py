"""Tiny models of ours and of transformers, for tests of weights in and out."""

from collections.abc import Callable
from typing import Any

import fiddle as fdl
import torch
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.experiments import nodes
from nanigpt.experiments.deepseek import deepseek_v3_model
from nanigpt.experiments.llama3 import llama3_model
from nanigpt.experiments.qwen3 import qwen3_model
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import TiedHead
from nanigpt.models.huggingface import families
from nanigpt.models.huggingface.mapping import weights
from nanigpt.models.init import Constant, initialize, materialize
from nanigpt.models.rope import Llama3Scaling, YarnScaling

VOCABULARY, POSITIONS = 97, 64

Edit = Callable[[fdl.Config], None]


def biased(*names: str) -> Edit:
    """Gives projections of attention or feed-forward a bias."""

    def edit(cfg):
        for layer in cfg.layers:
            for name in names:
                module = layer.attention if hasattr(layer.attention, name) else layer.feed_forward
                getattr(module, name).bias = fdl.Config(Constant, value=0.0)

    return edit


def windows(*sizes: int | None) -> Edit:
    """Gives each layer its window."""

    def edit(cfg):
        for layer, size in zip(cfg.layers, sizes, strict=True):
            layer.attention.window = size

    return edit


def scaled(scaling: type, *, theta: float, **arguments: Any) -> Edit:
    """RoPE with all kinds of frequencies within 64 positions."""

    def edit(cfg):
        rope = cfg.layers[0].attention.rope
        rope.theta = theta
        rope.scaling = fdl.Config(scaling, **arguments)

    return edit


def wide_heads(cfg: fdl.Config) -> None:
    for layer in cfg.layers:
        attention = layer.attention
        attention.head_dim = attention.rope.head_dim = 10
        attention.wq.out_dim = attention.wo.in_dim = 10 * attention.n_heads
        attention.wk.out_dim = attention.wv.out_dim = 10 * attention.n_kv_heads


PROJECTIONS, MATRICES = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")
YARN = scaled(YarnScaling, theta=500.0, factor=4.0, original_max_positions=16)
YARN_UNROUNDED = scaled(
    YarnScaling,
    theta=500.0,
    factor=3.0,
    original_max_positions=20,
    beta_fast=8.0,
    beta_slow=0.5,
    attention_factor=1.25,
    truncate=False,
)


def dense(*numbers: int, hidden_dim: int) -> Edit:
    """Layers that have no experts."""

    def edit(cfg):
        for i in numbers:
            cfg.layers[i].feed_forward = nodes.feed_forward(
                dim=cfg.norm.dim, hidden_dim=hidden_dim, output_scale=1.0
            )

    return edit


def gpt_oss_model(*, limit: float = 7.0, **sizes: Any) -> fdl.Config[Decoder]:
    cfg = qwen3_model(**sizes)
    biased(*PROJECTIONS)(cfg)
    for layer in cfg.layers:
        attention, mixture = layer.attention, layer.feed_forward
        attention.q_norm = attention.k_norm = None
        attention.sink = fdl.Config(
            AttentionSink, n_heads=attention.n_heads, initializer=fdl.Config(Constant, value=0.0)
        )
        mixture.router.bias = fdl.Config(Constant, value=0.0)
        mixture.experts.bias = fdl.Config(Constant, value=0.0)
        mixture.experts.activation = fdl.Config(ClampedSwiGLU, limit=limit)
    return cfg


def llama4_model(
    *, unrotated: tuple[int, ...], chunk: int, tuned: bool = True, normed: bool = True, **sizes: Any
) -> fdl.Config[Decoder]:
    cfg = qwen3_model(**sizes)
    for i, layer in enumerate(cfg.layers):
        attention, mixture = layer.attention, layer.feed_forward
        attention.q_norm.initializer = attention.k_norm.initializer = None
        if i in unrotated or not normed:
            attention.q_norm = attention.k_norm = None
        if i in unrotated:
            attention.rope = None
            attention.temperature = (
                fdl.Config(AttentionTemperature, floor_scale=8, scale=0.5) if tuned else None
            )
        else:
            attention.chunk = chunk
        mixture.router.scores, mixture.router.normalize = "sigmoid", False
        mixture.experts.weighs = "inputs"
        mixture.shared = nodes.feed_forward(
            dim=sizes["dim"], hidden_dim=sizes["hidden_dim"], output_scale=1.0
        )
    return cfg


def heads(dim: int, n_heads: int, n_kv_heads: int, head_dim: int, **others: Any) -> dict[str, Any]:
    """Sizes."""
    told = {"dim": dim, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
    return {**told, **others}


def latent(
    dim: int, n_heads: int, q_rank: int | None, kv_rank: int, nope: int, rope: int, v: int
) -> dict[str, Any]:
    """Sizes of latent attention."""
    heads = {"nope_head_dim": nope, "rope_head_dim": rope, "v_head_dim": v}
    return {"dim": dim, "n_heads": n_heads, "q_lora_rank": q_rank, "kv_lora_rank": kv_rank, **heads}


def unnormalized(cfg: fdl.Config) -> None:
    for layer in cfg.layers:
        layer.feed_forward.router.normalize = False


def tied(cfg: fdl.Config) -> None:
    cfg.head = fdl.Config(TiedHead, embedding=cfg.embedding)


def eps(cfg: fdl.Config) -> None:
    """Of all norms but those of latents, whose is fixed."""
    for norm in (
        cfg.norm,
        *(n for x in cfg.layers for n in (x.attention_norm, x.feed_forward_norm)),
    ):
        norm.eps = 1e-3


# Scores and what is rotated are scaled apart from each other.
LATENT_YARN = scaled(
    YarnScaling,
    theta=500.0,
    factor=4.0,
    original_max_positions=16,
    mscale_all_dim=3.0,
    attention_factor=1.25,
)

# By family: its model as a recipe makes it, and arguments and edits of that by shape.
FAMILIES = {family.model_type: family for family in families.FAMILIES}
MODELS = {
    "llama": llama3_model,
    "qwen3": qwen3_model,
    "qwen3_moe": qwen3_model,
    "gpt_oss": gpt_oss_model,
    "llama4_text": llama4_model,
    "deepseek_v3": deepseek_v3_model,
}
SHAPES: dict[str, dict[str, tuple[dict[str, Any], tuple[Edit, ...]]]] = {
    "llama": {
        "gqa": ({"dim": 48, "n_heads": 6, "n_kv_heads": 2, "hidden_dim": 80, "n_layers": 3}, ()),
        "tied": ({"dim": 32, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 56, "tied": True}, ()),
        "scaled": (
            {"dim": 64, "n_heads": 4, "n_kv_heads": 1, "hidden_dim": 96},
            (scaled(Llama3Scaling, theta=500.0, factor=4.0, original_max_positions=32),),
        ),
        "yarn": ({"dim": 64, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 72}, (YARN,)),
        "biased": (
            {"dim": 40, "n_heads": 5, "n_kv_heads": 5, "hidden_dim": 64},
            (biased(*PROJECTIONS, *MATRICES),),
        ),
        "wide_heads": (
            {"dim": 24, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "tied": True},
            (wide_heads,),
        ),
    },
    "qwen3": {
        "tied": (heads(32, 4, 2, 16, hidden_dim=56, n_layers=3, tied=True), ()),
        "untied": (heads(48, 6, 1, 8, hidden_dim=40), ()),
        "deep": (heads(24, 3, 3, 10, hidden_dim=72, n_layers=5, tied=True), ()),
        "biased": (heads(40, 4, 2, 10, hidden_dim=64), (biased(*PROJECTIONS),)),
        "last_windows": (heads(32, 2, 2, 16, hidden_dim=40, n_layers=3), (windows(None, 16, 16),)),
        "windows": (
            heads(32, 4, 1, 8, hidden_dim=40, n_layers=4),
            (windows(16, None, 16, None), YARN_UNROUNDED),
        ),
        "yarn": (heads(24, 2, 1, 16, hidden_dim=48), (YARN,)),
    },
    "qwen3_moe": {
        "two_of_four": (heads(32, 4, 2, 16, hidden_dim=24, n_experts=4, top_k=2), ()),
        "tied": (heads(24, 3, 1, 10, hidden_dim=16, n_experts=6, top_k=3, tied=True), (YARN,)),
        "partly_dense": (
            heads(40, 2, 2, 8, hidden_dim=20, n_experts=5, top_k=1, n_layers=3),
            (dense(0, 2, hidden_dim=48), windows(16, 16, 16), biased(*PROJECTIONS)),
        ),
    },
    "gpt_oss": {
        "alternating": (
            heads(32, 4, 2, 16, hidden_dim=24, n_experts=4, top_k=2),
            (windows(16, None), YARN_UNROUNDED),
        ),
        "clamped": (
            heads(24, 3, 1, 8, hidden_dim=32, n_experts=5, top_k=4, n_layers=3, limit=0.3),
            (windows(None, 7, 7), YARN),
        ),
        "unscaled": (
            heads(40, 2, 2, 10, hidden_dim=16, n_experts=3, top_k=1, tied=True),
            (windows(9, 9),),
        ),
    },
    "llama4_text": {
        "scout": (
            heads(32, 4, 2, 16, hidden_dim=24, n_experts=4, top_k=1, n_layers=4)
            | {"unrotated": (3,), "chunk": 16},
            (
                # The published model blends no frequencies: both factors are 1.
                scaled(
                    Llama3Scaling,
                    theta=500.0,
                    factor=16.0,
                    high_freq_factor=1.0,
                    original_max_positions=32,
                ),
            ),
        ),
        "maverick": (
            heads(24, 3, 1, 10, hidden_dim=40, n_experts=3, top_k=1, n_layers=4)
            | {"unrotated": (1, 3), "chunk": 24, "normed": False},
            (
                dense(0, 2, hidden_dim=56),
                scaled(Llama3Scaling, theta=500.0, factor=4.0, original_max_positions=32),
            ),
        ),
        "two_of_five": (
            heads(40, 2, 2, 8, hidden_dim=20, n_experts=5, top_k=2, n_layers=2, tied=True)
            | {"unrotated": (0,), "chunk": 10, "tuned": False},
            (biased(*PROJECTIONS),),
        ),
    },
    "deepseek_v3": {
        "groups": (
            latent(32, 4, 24, 20, 12, 8, 10)
            | {"hidden_dim": 56, "expert_dim": 16, "n_layers": 3, "n_dense_layers": 1}
            | {"n_experts": 8, "top_k": 3, "n_shared": 1, "n_groups": 4, "top_groups": 2}
            | {"yarn_factor": 4.0, "original_max_positions": 16},
            (),
        ),
        "whole_queries": (
            latent(24, 3, None, 16, 8, 10, 14)
            | {"hidden_dim": 40, "expert_dim": 12, "n_layers": 3, "n_dense_layers": 2}
            | {"n_experts": 6, "top_k": 2, "n_shared": 2, "scale": 1.5},
            (),
        ),
        "biased": (
            latent(40, 2, 16, 12, 10, 4, 6)
            | {"hidden_dim": 48, "expert_dim": 20, "n_dense_layers": 0}
            | {"n_experts": 4, "top_k": 1, "n_shared": 3, "n_groups": 2},
            (biased("wq_a", "wkv_a", "wo"), unnormalized, LATENT_YARN),
        ),
        "tied": (
            latent(36, 3, 20, 24, 6, 12, 8)
            | {"hidden_dim": 64, "expert_dim": 24, "n_dense_layers": 1}
            | {"n_experts": 5, "top_k": 5, "n_shared": 1},
            (tied, YARN_UNROUNDED, eps),
        ),
    },
}
CASES = [(family, shape) for family, shapes in SHAPES.items() for shape in shapes]


def tiny_model(family: str, shape: str) -> fdl.Config[Decoder]:
    """The config of a decoder with 97 tokens and 64 positions."""
    sizes, edits = SHAPES[family][shape]
    cfg = MODELS[family](
        **{"n_layers": 2, **sizes},
        vocab_size=VOCABULARY,
        sequence_length=POSITIONS,
        compute_dtype=torch.float32,
    )
    for edit in edits:
        edit(cfg)
    return cfg


def random_model(family: str, shape: str, *, seed: int = 1) -> Decoder:
    model = build(tiny_model(family, shape))
    materialize(model, "cpu")
    initialize(model, seed=seed)
    return randomize(model, seed=seed)


def randomize(model: nn.Module, *, seed: int) -> nn.Module:
    """Gives every weight other values, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights(model).values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the weights by name."""
    return {name: weight.detach().clone() for name, weight in weights(model).items()}

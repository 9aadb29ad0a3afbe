"""DeepSeek-V3: `DeepseekV3ForCausalLM`.

RoPE pairs neighbouring features, (0, 1), (2, 3), ..., in each head's queries and in the key that
all heads share. The first layers are dense. All others are mixtures with a shared expert and a bias
that balances the load. Published files store FP8 weights, which nanigpt can read but not write, and
extra layers that predict further tokens, which nanigpt skips.
"""

from collections.abc import Sequence
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.activation import SwiGLU
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface import rules
from nanigpt.models.huggingface.fields import (
    check_gains,
    common,
    completed,
    decoder_fields,
    feed_forward_fields,
    feed_forwards,
    of_kind,
    rope_fields,
)
from nanigpt.models.huggingface.mapping import Family, RotaryPairs, Rule
from nanigpt.models.huggingface.mixtures import mixture_fields, mixtures_and_dense
from nanigpt.models.latent_attention import LatentAttention
from nanigpt.models.moe.mixture import MixtureOfExperts

_LATENT_EPS = 1e-6  # norms of latents have this eps, whatever rms_norm_eps is

_QUERIES = RotaryPairs("qk_head_dim", "qk_rope_head_dim")
_PROJECTIONS = {
    "wq": ("q_proj", _QUERIES),
    "wq_a": ("q_a_proj", None),
    "wq_b": ("q_b_proj", _QUERIES),
    "wkv_a": ("kv_a_proj_with_mqa", RotaryPairs(None, "qk_rope_head_dim")),
    "wkv_b": ("kv_b_proj", None),
    "wo": ("o_proj", None),
}
_NORMS = {"q_norm": "q_a_layernorm", "kv_norm": "kv_a_layernorm"}
_OURS, _THEIRS = f"{rules.LAYER}.attention", f"{rules.THEIR_LAYER}.self_attn"

ATTENTION = (
    *(
        Rule(f"{_OURS}.{ours}.{{p}}", f"{_THEIRS}.{theirs}.{{p}}", rotary=rotary)
        for ours, (theirs, rotary) in _PROJECTIONS.items()
    ),
    *(Rule(f"{_OURS}.{a}.weight", f"{_THEIRS}.{b}.weight") for a, b in _NORMS.items()),
)
MIXTURE = (
    *rules.EXPERTS,
    Rule(
        f"{rules.LAYER}.feed_forward.router.expert_bias",
        f"{rules.THEIR_LAYER}.mlp.gate.e_score_correction_bias",
    ),
    *rules.feed_forward("mlp.shared_experts", ours="feed_forward.shared"),
)


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json that describe a model."""
    layers = of_kind(LatentAttention, (block.attention for block in model.layers))
    mixtures, dense = mixtures_and_dense(model)
    if list(dense) != list(range(len(dense))):
        raise UsageError(f"layers {list(dense)} are dense: expected the first ones")
    experts = mixture_fields(
        mixtures,
        n_experts="n_routed_experts",
        hidden_dim="moe_intermediate_size",
        activation=SwiGLU,
        also={"router.scores": "sigmoid"},
        stated=("router.scale", "router.n_groups"),
    )
    routers = [mixture.router for mixture in mixtures.values()]
    for i, mixture in mixtures.items():
        if mixture.router.expert_bias is None:
            raise UsageError(f"layers[{i}].feed_forward.router.balance_rate is None: expected one")
    return {
        **decoder_fields(model),
        **_attention_fields(layers),
        **rope_fields(layers, scores=True),
        **experts,
        "n_shared_experts": _shared_experts(mixtures, experts["moe_intermediate_size"]),
        "n_group": common("router.n_groups", [router.n_groups for router in routers]),
        "topk_group": common("router.top_groups", [router.top_groups for router in routers]),
        "norm_topk_prob": common("router.normalize", [router.normalize for router in routers]),
        "routed_scaling_factor": common("router.scale", [float(r.scale) for r in routers]),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": len(dense),
        "moe_layer_freq": 1,
        **(feed_forward_fields(list(dense.values())) if dense else {}),
        "num_nextn_predict_layers": 0,
    }


def _attention_fields(layers: Sequence[LatentAttention]) -> dict[str, Any]:
    for i, layer in enumerate(layers):
        where = f"layers[{i}].attention"
        for name in ("window", "chunk"):
            value = getattr(layer.visibility, name)
            if value is not None:
                raise UsageError(f"{where}.{name} is {value}: expected None")
        norms = {name: getattr(layer, name) for name in _NORMS}
        norms = {name: norm for name, norm in norms.items() if norm is not None}
        check_gains(norms.values())
        for name, norm in norms.items():
            if norm.eps != _LATENT_EPS:
                raise UsageError(f"{where}.{name}.eps is {norm.eps}: expected {_LATENT_EPS}")
        queries = layer.wq or layer.wq_b
        if queries is not None and queries.bias is not None:
            raise UsageError(f"{where} has a bias of all heads' queries: expected none")
    ranks = [None if layer.wq_a is None else layer.wq_a.out_dim for layer in layers]
    biased = [w for layer in layers for w in (layer.wq_a, layer.wkv_a, layer.wo) if w is not None]
    n_heads = common("attention.n_heads", [layer.n_heads for layer in layers])
    return {
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "q_lora_rank": common("attention.wq_a.out_dim", ranks),
        "kv_lora_rank": common("attention.kv_lora_rank", [layer.kv_lora_rank for layer in layers]),
        "qk_nope_head_dim": common(
            "attention.nope_head_dim", [layer.nope_head_dim for layer in layers]
        ),
        "qk_rope_head_dim": common("rope.head_dim", [layer.rope_head_dim for layer in layers]),
        "qk_head_dim": layers[0].qk_head_dim,
        "v_head_dim": common("attention.v_head_dim", [layer.v_head_dim for layer in layers]),
        "attention_bias": common("attention biases", [w.bias is not None for w in biased]),
        "rope_interleave": True,
    }


def _shared_experts(mixtures: dict[int, MixtureOfExperts], width: int) -> int:
    """Return the width of the shared network, in multiples of one expert's width."""
    if any(mixture.shared is None for mixture in mixtures.values()):
        raise UsageError("a mixture has no shared expert: expected one")
    mlps = feed_forwards(mixture.shared for mixture in mixtures.values())
    shared = feed_forward_fields(mlps)["intermediate_size"]
    if shared % width:
        raise UsageError(f"shared experts are {shared} wide: expected a multiple of {width}")
    return shared // width


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    further = config.get("num_mtp_layers", 1)  # version 5 of transformers has another name
    found = completed(
        config,
        scores=True,
        num_hidden_layers=61,
        num_attention_heads=128,
        num_key_value_heads=config.get("num_attention_heads", 128),
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        attention_bias=False,
        rope_interleave=True,
        rope_theta=10_000.0,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        n_routed_experts=config.get("num_local_experts", 256),
        moe_intermediate_size=2048,
        num_experts_per_tok=8,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        first_k_dense_replace=3,
        moe_layer_freq=1,
        intermediate_size=18_432,
        num_nextn_predict_layers=further,
    )
    return {
        **found,
        "q_lora_rank": config.get("q_lora_rank", 1536),  # null means that there is none
        "qk_head_dim": found["qk_nope_head_dim"] + found["qk_rope_head_dim"],
    }


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    rules=(*rules.FRAME, *ATTENTION, *rules.feed_forward(), *MIXTURE),
    fields=fields,
    normalized=normalized,
    ignored=(f"{_THEIRS}.rotary_emb.inv_freq",),
    further="num_nextn_predict_layers",
    second_names={
        "head_dim": "qk_rope_head_dim",
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
    },
)

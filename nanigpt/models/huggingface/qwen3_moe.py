"""Qwen3, the mixtures of experts: `Qwen3MoeForCausalLM`.

In files each expert has tensors of its own. Layers may be dense. Either all layers have the same
sliding window, or none has one.
"""

from typing import Any

from nanigpt.models.activation import SwiGLU
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface import rules
from nanigpt.models.huggingface.fields import (
    attention_fields,
    attentions,
    check_gains,
    common,
    completed,
    decoder_fields,
    feed_forward_fields,
    head_norms,
    rope_fields,
)
from nanigpt.models.huggingface.mapping import Family
from nanigpt.models.huggingface.mixtures import mixture_fields, mixtures_and_dense


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json that describe a model."""
    layers = attentions(model, has=("q_norm", "k_norm"), may_have=("window",))
    norms = head_norms(layers)
    check_gains(norms)
    mixtures, dense = mixtures_and_dense(model)
    window = common("attention.window", [layer.visibility.window for layer in layers])
    normalize = [mixture.router.normalize for mixture in mixtures.values()]
    return {
        **decoder_fields(model, norms=norms),
        **attention_fields(layers),
        **rope_fields(layers),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        **mixture_fields(
            mixtures,
            n_experts="num_experts",
            hidden_dim="moe_intermediate_size",
            activation=SwiGLU,
            also={"router.scores": "softmax"},
        ),
        "norm_topk_prob": common("router.normalize", normalize),
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
        **(feed_forward_fields(list(dense.values())) if dense else {}),
    }


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    heads = config.get("num_attention_heads", 32)
    found = completed(
        config,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=config.get("hidden_size", 2048) // heads,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=False,
        tie_word_embeddings=False,
        rope_theta=10_000.0,
        use_sliding_window=False,
        sliding_window=4096,
        num_experts=config.get("num_local_experts", 128),
        moe_intermediate_size=768,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        intermediate_size=6144,
    )
    window = found["sliding_window"] if found["use_sliding_window"] else None
    only, step = found["mlp_only_layers"], found["decoder_sparse_step"]
    dense = [i for i in range(found["num_hidden_layers"]) if i in only or (i + 1) % step]
    return {
        **found,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    rules=(
        *rules.FRAME,
        *rules.HEAD_NORMS,
        *rules.attention(),
        *rules.feed_forward(),
        *rules.EXPERTS,
    ),
    fields=fields,
    normalized=normalized,
    second_names={"num_local_experts": "num_experts"},
)

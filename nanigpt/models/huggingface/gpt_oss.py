"""GPT-OSS: `GptOssForCausalLM`.

Attention has sinks, and some layers have a sliding window. All experts of a layer are one tensor,
whose rows are inputs and whose columns alternate between gates and the values that they multiply.
Published files store them in MXFP4, which nanigpt can read but not write.
"""

from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface import rules
from nanigpt.models.huggingface.fields import (
    attention_fields,
    attentions,
    common,
    completed,
    decoder_fields,
    of_kind,
    rope_fields,
    window_fields,
)
from nanigpt.models.huggingface.mapping import Family, Rule
from nanigpt.models.huggingface.mixtures import mixture_fields, mixtures_and_dense

_OURS, _THEIRS = f"{rules.LAYER}.feed_forward", f"{rules.THEIR_LAYER}.mlp"
_W1, _W2, _W3 = (f"{_OURS}.experts.w{i}" for i in (1, 2, 3))
_B1, _B2, _B3 = (f"{_OURS}.experts.bias{i}" for i in (1, 2, 3))

EXPERTS = (
    Rule(f"{_OURS}.router.weight", f"{_THEIRS}.router.weight"),
    Rule(f"{_OURS}.router.bias", f"{_THEIRS}.router.bias"),
    Rule((_W1, _W3), f"{_THEIRS}.experts.gate_up_proj", along=1, alternating=True, transposed=True),
    Rule((_B1, _B3), f"{_THEIRS}.experts.gate_up_proj_bias", along=1, alternating=True),
    Rule(_W2, f"{_THEIRS}.experts.down_proj", transposed=True),
    Rule(_B2, f"{_THEIRS}.experts.down_proj_bias"),
)

# A config.json without RoPE's scaling means this one; "default" means none.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_UNSCALED = {"rope_type": "default"}


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json that describe a model."""
    layers = attentions(model, has=("sink",), may_have=("window",))
    mixtures, dense = mixtures_and_dense(model)
    windows = window_fields([layer.visibility.window for layer in layers])
    rope = rope_fields(layers)
    if dense:
        raise UsageError(f"layers[{next(iter(dense))}] is dense: expected a mixture of experts")
    if windows["sliding_window"] is None:
        raise UsageError("no layer has a window: expected one")
    biases = [m.router.bias is not None for m in mixtures.values()]
    biases += [m.experts.bias_initializer is not None for m in mixtures.values()]
    if not all(biases):
        raise UsageError("a router or experts have no bias: expected one")
    gates = of_kind(ClampedSwiGLU, (mixture.experts.activation for mixture in mixtures.values()))
    return {
        **decoder_fields(model),
        **attention_fields(layers),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"] or _UNSCALED,
        "sliding_window": windows["sliding_window"],
        "layer_types": windows["layer_types"],
        **mixture_fields(
            mixtures,
            n_experts="num_local_experts",
            hidden_dim="intermediate_size",
            activation=ClampedSwiGLU,
            also={"router.scores": "softmax", "router.normalize": True},
        ),
        "swiglu_alpha": common("activation.alpha", [float(gate.alpha) for gate in gates]),
        "swiglu_limit": common("activation.limit", [float(gate.limit) for gate in gates]),
    }


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    n = config.get("num_hidden_layers", 36)
    scaled: dict[str, Any] = {} if config.get("rope_parameters") else {"rope_scaling": _YARN}
    found = completed(
        config,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_theta=150_000.0,
        sliding_window=128,
        layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(n)],
        num_local_experts=128,
        intermediate_size=2880,
        num_experts_per_tok=4,
        hidden_act="silu",
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        **scaled,
    )
    return {**found, "rope_scaling": found["rope_scaling"] or _UNSCALED}


GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    rules=(
        *rules.FRAME,
        *rules.attention(),
        Rule(f"{rules.LAYER}.attention.sink.weight", f"{rules.THEIR_LAYER}.self_attn.sinks"),
        *EXPERTS,
    ),
    fields=fields,
    normalized=normalized,
    second_names={"experts_per_token": "num_experts_per_tok"},
)

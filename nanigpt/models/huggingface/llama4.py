"""Llama 4, the text models: `Llama4ForCausalLM`.

RoPE pairs neighbouring features of queries and keys: (0, 1), (2, 3), ... Their norm comes after
RoPE, which does not change it, and has no gain. Layers without RoPE store the same pairs, which
makes no difference there. All experts of a layer are one tensor whose rows are inputs. The router's
weights multiply the inputs of experts, not their outputs as in other families. Published files hold
the text model as a part of a multimodal one.
"""

from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.activation import SwiGLU
from nanigpt.models.attention import Attention
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface import rules
from nanigpt.models.huggingface.fields import (
    attention_fields,
    attentions,
    common,
    completed,
    decoder_fields,
    feed_forward_fields,
    feed_forwards,
    head_norms,
    rope_fields,
)
from nanigpt.models.huggingface.mapping import Family, RotaryPairs, Rule, Whole
from nanigpt.models.huggingface.mixtures import mixture_fields, mixtures_and_dense

_OURS, _THEIRS = f"{rules.LAYER}.feed_forward", f"{rules.THEIR_LAYER}.feed_forward"

EXPERTS = (
    Rule(f"{_OURS}.router.weight", f"{_THEIRS}.router.weight"),
    Rule(
        (f"{_OURS}.experts.w1", f"{_OURS}.experts.w3"),
        f"{_THEIRS}.experts.gate_up_proj",
        along=1,
        transposed=True,
    ),
    Rule(f"{_OURS}.experts.w2", f"{_THEIRS}.experts.down_proj", transposed=True),
    *rules.feed_forward("feed_forward.shared_expert", ours="feed_forward.shared"),
)


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json that describe a model."""
    optional = ("rope", "q_norm", "k_norm", "chunk", "temperature")
    layers = attentions(model, may_have=optional)
    mixtures, dense = mixtures_and_dense(model)
    if any(mixture.shared is None for mixture in mixtures.values()):
        raise UsageError("a mixture has no shared expert: expected one")

    experts = mixture_fields(
        mixtures,
        n_experts="num_local_experts",
        hidden_dim="intermediate_size",
        activation=SwiGLU,
        also={
            "router.scores": "sigmoid",
            "router.normalize": False,
            "experts.weighs": "inputs",
        },
    )
    shared = feed_forward_fields(feed_forwards(mixture.shared for mixture in mixtures.values()))
    if shared["intermediate_size"] != experts["intermediate_size"]:
        raise UsageError(
            f"a shared expert is {shared['intermediate_size']} wide: expected "
            f"{experts['intermediate_size']} as the others"
        )
    wide = feed_forward_fields(list(dense.values()))["intermediate_size"] if dense else None
    return {
        **decoder_fields(model, norms=head_norms(layers)),
        **attention_fields(layers),
        **rope_fields(layers),
        **_layers(layers),
        **experts,
        **({} if wide is None else {"intermediate_size_mlp": wide}),
        "moe_layers": list(mixtures),
    }


def _layers(layers: list[Attention]) -> dict[str, Any]:
    """Return the fields that say which layers have RoPE, norms, chunks and a temperature."""
    rotated = [layer for layer in layers if layer.rope is not None]
    others = [layer for layer in layers if layer.rope is None]
    chunks = [layer.visibility.chunk for layer in layers]
    normed = common(
        "q_norm and k_norm, where there is RoPE,",
        [n is not None for layer in rotated for n in (layer.q_norm, layer.k_norm)],
    )
    if any(n is not None for layer in others for n in (layer.q_norm, layer.k_norm)):
        raise UsageError("a layer without RoPE has a norm of heads: expected none")
    if any(layer.temperature is not None for layer in rotated):
        raise UsageError("a layer with RoPE has a temperature: expected none")
    if not any(chunks):
        raise UsageError("no layer has chunks: expected one")
    temperatures = [layer.temperature for layer in others]
    tuned = [None if t is None else (t.floor_scale, float(t.scale)) for t in temperatures]
    tuning = common("temperature, where there is no RoPE,", tuned) if tuned else None
    return {
        "no_rope_layers": [int(layer.rope is not None) for layer in layers],
        "layer_types": ["full_attention" if c is None else "chunked_attention" for c in chunks],
        "attention_chunk_size": common("attention.chunk", [c for c in chunks if c is not None]),
        "use_qk_norm": normed,
        "attn_temperature_tuning": tuning is not None,
        **({} if tuning is None else dict(zip(("floor_scale", "attn_scale"), tuning, strict=True))),
    }


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    found = completed(
        config,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        attention_bias=False,
        tie_word_embeddings=False,
        rope_theta=500_000.0,
        intermediate_size=8192,
        intermediate_size_mlp=16_384,
        num_experts_per_tok=1,
        num_local_experts=16,
        interleave_moe_layer_step=1,
        use_qk_norm=True,
        no_rope_layer_interval=4,
        attention_chunk_size=8192,
        attn_temperature_tuning=True,
        floor_scale=8192,
        attn_scale=0.1,
    )
    n = found["num_hidden_layers"]
    step, interval = found["interleave_moe_layer_step"], found["no_rope_layer_interval"]
    # An empty list stands for the default here, though not in moe_layers.
    rotated = found.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(n)]
    kinds = ["chunked_attention" if r else "full_attention" for r in rotated]
    return {
        "moe_layers": list(range(step - 1, n, step)),
        "layer_types": kinds,
        **found,
        "no_rope_layers": rotated,
        "attn_temperature_tuning": bool(found["attn_temperature_tuning"]) and not all(rotated),
    }


LLAMA4 = Family(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    rules=(
        *rules.FRAME,
        *rules.attention(rotary=RotaryPairs("head_dim", "head_dim")),
        *rules.feed_forward("feed_forward"),
        *EXPERTS,
    ),
    fields=fields,
    normalized=normalized,
    whole=Whole(model_type="llama4", field="text_config", prefix="language_model."),
)

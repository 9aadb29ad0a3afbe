"""Llama: `LlamaForCausalLM`.

Both sides pair feature i of a head with feature i + K/2 for RoPE, so no weight is reordered.
"""

from typing import Any

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
    rope_fields,
)
from nanigpt.models.huggingface.mapping import Family


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json for a decoder whose layers are all equal."""
    layers = attentions(model)
    mlps = feed_forwards(block.feed_forward for block in model.layers)
    matrices = [w for mlp in mlps for w in (mlp.w1, mlp.w2, mlp.w3)]
    return {
        **decoder_fields(model),
        **attention_fields(layers),
        **feed_forward_fields(mlps),
        **rope_fields(layers),
        "mlp_bias": common("feed_forward biases", [w.bias is not None for w in matrices]),
    }


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    heads = config.get("num_attention_heads", 32)
    return completed(
        config,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.get("hidden_size", 4096) // heads,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        rope_theta=10_000.0,
    )


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=(*rules.FRAME, *rules.attention(), *rules.feed_forward(part="{p}")),
    fields=fields,
    normalized=normalized,
    ignored=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)

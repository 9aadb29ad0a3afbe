"""Qwen3, the dense models: `Qwen3ForCausalLM`.

Llama with a norm of each head of queries and keys, and layers that may have a sliding window.
"""

from typing import Any

from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface import rules
from nanigpt.models.huggingface.fields import (
    attention_fields,
    attentions,
    check_gains,
    completed,
    decoder_fields,
    feed_forward_fields,
    feed_forwards,
    head_norms,
    rope_fields,
    window_fields,
)
from nanigpt.models.huggingface.mapping import Family


def fields(model: Decoder) -> dict[str, Any]:
    """Return the fields of config.json for a decoder whose layers differ only in their windows."""
    layers = attentions(model, has=("q_norm", "k_norm"), may_have=("window",))
    norms = head_norms(layers)
    check_gains(norms)
    return {
        **decoder_fields(model, norms=norms),
        **attention_fields(layers),
        **feed_forward_fields(feed_forwards(block.feed_forward for block in model.layers)),
        **rope_fields(layers),
        **window_fields([layer.visibility.window for layer in layers]),
    }


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the form of `fields`, with defaults filled in."""
    found = completed(
        config,
        num_attention_heads=32,
        # If the field is left out, it is 32; null means as many as there are query heads.
        num_key_value_heads=32
        if "num_key_value_heads" not in config
        else config.get("num_attention_heads", 32),
        head_dim=128,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=False,
        tie_word_embeddings=False,
        rope_theta=10_000.0,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
    )
    window = found["sliding_window"] if found["use_sliding_window"] else None
    n = found["num_hidden_layers"]
    full = n if window is None else found["max_window_layers"]
    kinds = found.get("layer_types") or [
        "full_attention" if i < full else "sliding_attention" for i in range(n)
    ]
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return {**found, **window_fields(windows), "layer_types": kinds}


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=(*rules.FRAME, *rules.HEAD_NORMS, *rules.attention(), *rules.feed_forward()),
    fields=fields,
    normalized=normalized,
)

"""Llama: `LlamaForCausalLM`.

Both sides pair feature i of a head with feature i + K/2 for RoPE, so no weight is reordered.
"""

from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.attention import Attention
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.fields import alike, rope_fields
from nanigpt.models.huggingface.mapping import Family, Rule

_LAYER, _THEIRS = "layers.{i}", "model.layers.{i}"

RULES = (
    Rule("embedding.weight", "model.embed_tokens.weight"),
    Rule(f"{_LAYER}.attention_norm.weight", f"{_THEIRS}.input_layernorm.weight"),
    Rule(f"{_LAYER}.attention.wq.{{p}}", f"{_THEIRS}.self_attn.q_proj.{{p}}"),
    Rule(f"{_LAYER}.attention.wk.{{p}}", f"{_THEIRS}.self_attn.k_proj.{{p}}"),
    Rule(f"{_LAYER}.attention.wv.{{p}}", f"{_THEIRS}.self_attn.v_proj.{{p}}"),
    Rule(f"{_LAYER}.attention.wo.{{p}}", f"{_THEIRS}.self_attn.o_proj.{{p}}"),
    Rule(f"{_LAYER}.feed_forward_norm.weight", f"{_THEIRS}.post_attention_layernorm.weight"),
    Rule(f"{_LAYER}.feed_forward.w1.{{p}}", f"{_THEIRS}.mlp.gate_proj.{{p}}"),
    Rule(f"{_LAYER}.feed_forward.w3.{{p}}", f"{_THEIRS}.mlp.up_proj.{{p}}"),
    Rule(f"{_LAYER}.feed_forward.w2.{{p}}", f"{_THEIRS}.mlp.down_proj.{{p}}"),
    Rule("norm.weight", "model.norm.weight"),
    Rule("head.weight", "lm_head.weight"),
)


def fields(model: Decoder) -> dict[str, Any]:
    """config.json of a decoder whose layers are all alike."""
    blocks = list(model.layers)
    attentions = [block.attention for block in blocks]
    mlps = [block.feed_forward for block in blocks]
    kinds = {type(module) for module in [*attentions, *mlps]} - {Attention, FeedForward}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UsageError(f"layers have {names}: expected Attention and FeedForward")
    norms = [model.norm]
    norms += [norm for b in blocks for norm in (b.attention_norm, b.feed_forward_norm)]
    projections = [w for a in attentions for w in (a.wq, a.wk, a.wv, a.wo)]
    matrices = [w for m in mlps for w in (m.w1, m.w2, m.w3)]
    ropes = [rope_fields(attention.rope) for attention in attentions]
    heads = alike("attention.n_heads", [a.n_heads for a in attentions])
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.embedding.dim,
        "intermediate_size": alike("feed_forward.w1.out_dim", [m.w1.out_dim for m in mlps]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "num_key_value_heads": alike("attention.n_kv_heads", [a.n_kv_heads for a in attentions]),
        "head_dim": alike("attention.head_dim", [a.head_dim for a in attentions]),
        "hidden_act": "silu",
        "max_position_embeddings": model.max_sequence_length,
        "rms_norm_eps": alike("norm.eps", [norm.eps for norm in norms]),
        "attention_bias": alike("attention biases", [w.bias is not None for w in projections]),
        "mlp_bias": alike("feed_forward biases", [w.bias is not None for w in matrices]),
        "tie_word_embeddings": isinstance(model.head, TiedHead),
        **alike("attention.rope", ropes),
    }


def absent(config: dict[str, Any]) -> dict[str, Any]:
    """The defaults of transformers' LlamaConfig, which its older files leave out."""
    heads = config.get("num_attention_heads", 32)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": config.get("hidden_size", 4096) // heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=RULES,
    fields=fields,
    absent=absent,
    ignored=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)

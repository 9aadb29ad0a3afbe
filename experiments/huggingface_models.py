"""DAGs of models from fields of config.json, one function for each family of `FAMILIES`.

The fields have the form of `Family.fields`: all defaults are filled in. A function need not check
fields that its modules cannot vary, such as `hidden_act`: the caller compares what it built.
"""

import math
from collections.abc import Callable
from typing import Any

import fiddle as fdl
import torch

from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.config_json import Fields
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling

Part = Callable[[int], fdl.Config]
"""Returns the attention, or the feed-forward network, of the layer with this index."""


def llama(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return a Llama, which may have biases."""
    rope = _rope(f, f["head_dim"])

    def feed_forward(i: int) -> fdl.Config:
        network = _feed_forward(f)
        if f["mlp_bias"]:
            _add_biases(network, "w1", "w2", "w3")
        return network

    return _decoder(f, dtype, lambda i: _attention(f, rope=rope), feed_forward)


def qwen3(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return a dense Qwen3, whose layers may have a window."""
    rope = _rope(f, f["head_dim"])

    def attention(i: int) -> fdl.Config:
        window = f["sliding_window"] if f["layer_types"][i] == "sliding_attention" else None
        return _attention(f, rope=rope, window=window, **_head_norms(f))

    return _decoder(f, dtype, attention, lambda i: _feed_forward(f))


def qwen3_moe(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return a Qwen3 with mixtures of experts."""
    rope = _rope(f, f["head_dim"])

    def attention(i: int) -> fdl.Config:
        return _attention(f, rope=rope, window=f["sliding_window"], **_head_norms(f))

    def feed_forward(i: int) -> fdl.Config:
        if i in f["mlp_only_layers"]:
            return _feed_forward(f)
        return nodes.mixture_of_experts(
            dim=f["hidden_size"],
            n_experts=f["num_experts"],
            top_k=f["num_experts_per_tok"],
            hidden_dim=f["moe_intermediate_size"],
            output_scale=_output_scale(f),
            scores="softmax",
            normalize=f["norm_topk_prob"],
        )

    return _decoder(f, dtype, attention, feed_forward)


def llama4(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return the text model of Llama 4."""
    rope = _rope(f, f["head_dim"])

    def attention(i: int) -> fdl.Config:
        kind: dict[str, Any] = {"rope": rope if f["no_rope_layers"][i] else None}
        if f["layer_types"][i] == "chunked_attention":
            kind["chunk"] = f["attention_chunk_size"]
        if kind["rope"] is None and f["attn_temperature_tuning"]:
            kind["temperature"] = fdl.Config(
                AttentionTemperature, scale=f["attn_scale"], floor_scale=f["floor_scale"]
            )
        if kind["rope"] is not None and f["use_qk_norm"]:
            for name in ("q_norm", "k_norm"):
                kind[name] = fdl.Config(
                    RMSNorm, dim=f["head_dim"], initializer=None, eps=f["rms_norm_eps"]
                )
        return _attention(f, **kind)

    def feed_forward(i: int) -> fdl.Config:
        if i not in f["moe_layers"]:
            return _feed_forward(f, "intermediate_size_mlp")
        return nodes.mixture_of_experts(
            dim=f["hidden_size"],
            n_experts=f["num_local_experts"],
            top_k=f["num_experts_per_tok"],
            hidden_dim=f["intermediate_size"],
            shared_dim=f["intermediate_size"],
            output_scale=_output_scale(f),
            scores="sigmoid",
            experts={"weighs": "inputs"},
        )

    return _decoder(f, dtype, attention, feed_forward)


def gpt_oss(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return a GPT-OSS, with sinks, windows and biases."""
    rope = _rope(f, f["head_dim"])

    def attention(i: int) -> fdl.Config:
        kind: dict[str, Any] = {}
        if f["layer_types"][i] == "sliding_attention":
            kind["window"] = f["sliding_window"]
        sink = fdl.Config(AttentionSink, n_heads=f["num_attention_heads"], initializer=nodes.zero())
        return _attention(f, rope=rope, sink=sink, **kind)

    def feed_forward(i: int) -> fdl.Config:
        activation = fdl.Config(ClampedSwiGLU, alpha=f["swiglu_alpha"], limit=f["swiglu_limit"])
        return nodes.mixture_of_experts(
            dim=f["hidden_size"],
            n_experts=f["num_local_experts"],
            top_k=f["num_experts_per_tok"],
            hidden_dim=f["intermediate_size"],
            output_scale=_output_scale(f),
            scores="softmax",
            normalize=True,
            bias=nodes.zero(),
            experts={"bias": nodes.zero(), "activation": activation},
        )

    return _decoder(f, dtype, attention, feed_forward)


def deepseek_v3(f: Fields, dtype: torch.dtype) -> fdl.Config[Decoder]:
    """Return a DeepSeek-V3, without the layers that predict further tokens."""
    rope = _rope(f, f["qk_rope_head_dim"])

    def attention(i: int) -> fdl.Config:
        latent = nodes.latent_attention(
            dim=f["hidden_size"],
            n_heads=f["num_attention_heads"],
            q_lora_rank=f["q_lora_rank"],
            kv_lora_rank=f["kv_lora_rank"],
            nope_head_dim=f["qk_nope_head_dim"],
            v_head_dim=f["v_head_dim"],
            rope=rope,
            output_scale=_output_scale(f),
        )
        if f["attention_bias"]:
            _add_biases(latent, "wkv_a", "wo")
            if f["q_lora_rank"] is not None:
                _add_biases(latent, "wq_a")
        return latent

    def feed_forward(i: int) -> fdl.Config:
        if i < f["first_k_dense_replace"]:
            return _feed_forward(f)
        return nodes.mixture_of_experts(
            dim=f["hidden_size"],
            n_experts=f["n_routed_experts"],
            top_k=f["num_experts_per_tok"],
            hidden_dim=f["moe_intermediate_size"],
            shared_dim=f["n_shared_experts"] * f["moe_intermediate_size"],
            output_scale=_output_scale(f),
            scores="sigmoid",
            normalize=f["norm_topk_prob"],
            scale=f["routed_scaling_factor"],
            n_groups=f["n_group"],
            top_groups=f["topk_group"],
            balance_rate=0.001,
        )

    return _decoder(f, dtype, attention, feed_forward)


MODELS: dict[str, Callable[[Fields, torch.dtype], fdl.Config[Decoder]]] = {
    "llama": llama,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "llama4_text": llama4,
    "gpt_oss": gpt_oss,
    "deepseek_v3": deepseek_v3,
}
"""Functions that make a model from its fields, by `model_type`."""


def _decoder(
    f: Fields, dtype: torch.dtype, attention: Part, feed_forward: Part
) -> fdl.Config[Decoder]:
    dim = f["hidden_size"]

    def norm() -> fdl.Config[RMSNorm]:
        return nodes.norm(dim, eps=f["rms_norm_eps"])

    def block(i: int) -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=norm(),
            attention=attention(i),
            feed_forward_norm=norm(),
            feed_forward=feed_forward(i),
        )

    return nodes.decoder(
        layers=[block(i) for i in range(f["num_hidden_layers"])],
        norm=norm(),
        dim=dim,
        vocab_size=f["vocab_size"],
        tied=f["tie_word_embeddings"],
        compute_dtype=dtype,
    )


def _attention(f: Fields, **kind: Any) -> fdl.Config:
    given = {name: value for name, value in kind.items() if value is not None or name == "rope"}
    return nodes.attention(
        dim=f["hidden_size"],
        n_heads=f["num_attention_heads"],
        n_kv_heads=f["num_key_value_heads"],
        head_dim=f["head_dim"],
        output_scale=_output_scale(f),
        bias=f["attention_bias"],
        **given,
    )


def _head_norms(f: Fields) -> dict[str, fdl.Config]:
    return {n: nodes.norm(f["head_dim"], eps=f["rms_norm_eps"]) for n in ("q_norm", "k_norm")}


def _feed_forward(f: Fields, width: str = "intermediate_size") -> fdl.Config:
    return nodes.feed_forward(
        dim=f["hidden_size"], hidden_dim=f[width], output_scale=_output_scale(f)
    )


def _add_biases(node: fdl.Config, *names: str) -> None:
    for name in names:
        getattr(node, name).bias = nodes.zero()


def _output_scale(f: Fields) -> float:
    return nodes.residual_scale(f["num_hidden_layers"])


def _rope(f: Fields, head_dim: int) -> fdl.Config[RotaryEmbedding]:
    """Return the RoPE of all layers.

    Raises:
        UsageError: transformers has another scaling than those of Llama 3 and YaRN.
    """
    rope = fdl.Config(
        RotaryEmbedding,
        head_dim=head_dim,
        max_sequence_length=f["max_position_embeddings"],
        theta=f["rope_theta"],
    )
    scaling = f["rope_scaling"]
    kind = "default" if scaling is None else scaling.get("rope_type")
    if kind == "default":
        return rope
    if kind not in ("llama3", "yarn"):
        raise UsageError(
            f"rope_scaling={scaling!r}: expected rope_type 'llama3', 'yarn' or 'default'"
        )
    given = Fields(scaling)
    arguments = {
        "factor": given["factor"],
        "original_max_positions": given["original_max_position_embeddings"],
    }
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            arguments[name] = given[name]
        rope.scaling = fdl.Config(Llama3Scaling, **arguments)
    else:
        for name in ("beta_fast", "beta_slow", "truncate"):
            arguments[name] = given[name]
        arguments["mscale_all_dim"] = scaling.get("mscale_all_dim", 0.0)
        rope.scaling = fdl.Config(YarnScaling, **arguments)
        if not math.isclose(YarnScaling(**arguments).attention_factor, given["attention_factor"]):
            rope.scaling.attention_factor = given["attention_factor"]
    return rope

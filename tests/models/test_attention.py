"""Attention of other families against transformers' modules: sinks, windows, biases, temperature."""

import math

import fiddle as fdl
import pytest
import torch
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama4 import modeling_llama4 as llama4

from nanigpt.config.check.build import build
from nanigpt.experiments import nodes
from nanigpt.models.attention_core import Eager, ScaledDotProduct
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.init import FanInNormal, TruncatedNormal, initialize, materialize
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling
from nanigpt.models.visibility import Visibility

LENGTH = 40
SIZES = {"dim": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
NAMES = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "sink.weight": "sinks"}


def built(*, bias=False, core=None, **arguments):
    cfg = nodes.attention(**SIZES, output_scale=1.0, core=core, **arguments)
    for name in ("wq", "wk", "wv", "wo"):
        getattr(cfg, name).bias = fdl.Config(TruncatedNormal, std=0.5) if bias else None
    attention = build(cfg)
    materialize(attention, "cpu")
    initialize(attention, seed=3)
    return attention


def in_pairs(name, weight):
    """What RoPE turns together stands together in Llama 4, and half a head apart here."""
    if name in ("q_proj.weight", "k_proj.weight"):
        halves = weight.unflatten(0, (-1, 2, SIZES["head_dim"] // 2))
        return halves.transpose(1, 2).flatten(0, 2)
    return weight


def assert_equal(ours, theirs, *, arranged=lambda name, weight: weight, sight=None, **arguments):
    """Outputs and all gradients, with our weights in both."""
    weights = {}
    for name, p in ours.named_parameters():
        for our_part, their_part in NAMES.items():
            name = name.replace(our_part, their_part)
        weights[name] = p
    theirs.load_state_dict({name: arranged(name, p) for name, p in weights.items()})
    x = torch.randn(2, LENGTH, SIZES["dim"], generator=torch.Generator().manual_seed(0))
    mask = (sight or Visibility()).sees(torch.arange(LENGTH)[:, None], torch.arange(LENGTH))
    bias = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~mask, -torch.inf)
    out, expected = ours(x), theirs(x, attention_mask=bias, **arguments)[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for y in (out, expected):
        y.square().sum().backward()
    for name, p in theirs.named_parameters():
        gradient = arranged(name, weights[name].grad)
        torch.testing.assert_close(gradient, p.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("core", [ScaledDotProduct, Eager])
@pytest.mark.parametrize("window", [None, 8])
def test_sinks_windows_and_yarn_are_those_of_gpt_oss(window, core):
    config = gpt_oss.GptOssConfig(
        hidden_size=SIZES["dim"],
        num_attention_heads=SIZES["n_heads"],
        num_key_value_heads=SIZES["n_kv_heads"],
        head_dim=SIZES["head_dim"],
        max_position_embeddings=128,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "truncate": False,
        },
        attn_implementation="eager",
    )
    rope = fdl.Config(
        RotaryEmbedding,
        head_dim=SIZES["head_dim"],
        max_sequence_length=128,
        theta=150_000.0,
        scaling=fdl.Config(YarnScaling, factor=8.0, original_max_positions=16, truncate=False),
    )
    sink = fdl.Config(
        AttentionSink, n_heads=SIZES["n_heads"], initializer=fdl.Config(TruncatedNormal, std=2.0)
    )
    ours = built(bias=True, rope=rope, window=window, sink=sink, core=fdl.Config(core))
    theirs = gpt_oss.GptOssAttention(config, layer_idx=0)
    tables = gpt_oss.GptOssRotaryEmbedding(config)(torch.zeros(()), torch.arange(LENGTH)[None])
    assert_equal(ours, theirs, position_embeddings=tables, sight=Visibility(window=window))


def llama4_config(**arguments):
    return llama4.Llama4TextConfig(
        hidden_size=SIZES["dim"],
        num_attention_heads=SIZES["n_heads"],
        num_key_value_heads=SIZES["n_kv_heads"],
        head_dim=SIZES["head_dim"],
        num_hidden_layers=1,
        attn_implementation="eager",
        **arguments,
    )


def test_layers_without_rope_have_the_temperature_of_llama4():
    config = llama4_config(
        no_rope_layers=[0], attn_temperature_tuning=True, floor_scale=8, attn_scale=0.5
    )
    temperature = fdl.Config(AttentionTemperature, scale=0.5, floor_scale=8)
    ours = built(rope=None, temperature=temperature)
    assert_equal(ours, llama4.Llama4TextAttention(config, 0), position_embeddings=None)


def test_scores_are_multiplied_by_what_the_scaling_of_rope_says():
    def attention(mscale):
        scaling = fdl.Config(
            YarnScaling,
            factor=8.0,
            original_max_positions=16,
            attention_factor=1.0,
            mscale_all_dim=mscale,
        )
        return built(
            rope=fdl.Config(RotaryEmbedding, head_dim=16, max_sequence_length=64, scaling=scaling)
        )

    scaled, plain = attention(2.0), attention(0.0)
    x = torch.randn(2, LENGTH, SIZES["dim"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(scaled(x), plain(x), atol=1e-3)
        plain.wq.weight.mul_((1 + 0.2 * math.log(8.0)) ** 2)
        torch.testing.assert_close(scaled(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normed", [True, False])
def test_layers_with_rope_are_those_of_llama4(normed):
    """Chunks, RoPE scaled as Scout's, and norms without gains, there after RoPE, here before."""
    config = llama4_config(
        no_rope_layers=[1],
        use_qk_norm=normed,
        rms_norm_eps=0.1,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 20,
        },
    )
    scaling = fdl.Config(
        Llama3Scaling, factor=16.0, high_freq_factor=1.0, original_max_positions=20
    )
    rope = fdl.Config(
        RotaryEmbedding,
        head_dim=SIZES["head_dim"],
        max_sequence_length=64,
        theta=500.0,
        scaling=scaling,
    )
    norms = {}
    for name in ("q_norm", "k_norm") if normed else ():
        norms[name] = fdl.Config(RMSNorm, dim=SIZES["head_dim"], initializer=None, eps=0.1)
    assert_equal(
        built(rope=rope, chunk=16, **norms),
        llama4.Llama4TextAttention(config, 0),
        arranged=in_pairs,
        sight=Visibility(chunk=16),
        position_embeddings=llama4.Llama4TextRotaryEmbedding(config)(
            torch.zeros(()), torch.arange(LENGTH)[None]
        ),
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"q_norm": nodes.norm(8)}, "q_norm.dim=8: expected 16"),
        ({"k_norm": nodes.norm(32)}, "k_norm.dim=32: expected 16"),
        ({"window": 0}, "window=0: expected at least 1 position"),
        ({"chunk": -4}, "chunk=-4: expected at least 1 position"),
        (
            {"sink": fdl.Config(AttentionSink, n_heads=2, initializer=fdl.Config(FanInNormal))},
            "sink.n_heads=2: expected 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        built(rope=None, **arguments)

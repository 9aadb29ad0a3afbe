"""Blocks of experts of Qwen3, Llama 4 and GPT-OSS against transformers' modules."""

import pytest
import torch
import transformers
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.experiments.gpt_oss import gpt_oss_model
from nanigpt.experiments.llama4 import llama4_model
from nanigpt.experiments.qwen3 import qwen3_model
from nanigpt.models.init import initialize, materialize
from nanigpt.models.moe.mixture import MixtureOfExperts

SIZES = {"dim": 24, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 20}


def qwen3():
    cfg = qwen3_model(**SIZES, n_experts=8, top_k=3, vocab_size=64, sequence_length=64)
    config = transformers.Qwen3MoeConfig(
        hidden_size=24,
        moe_intermediate_size=20,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    )
    return cfg, Qwen3MoeSparseMoeBlock(config)


def of_qwen3(w):
    return {
        "gate.weight": w["router.weight"],
        "experts.gate_up_proj": torch.cat([w["experts.w1"], w["experts.w3"]], dim=1),
        "experts.down_proj": w["experts.w2"],
    }


def llama4():
    cfg = llama4_model(
        **SIZES, n_experts=6, mixture_interval=1, qk_norm=True, vocab_size=64, sequence_length=64
    )
    config = transformers.Llama4TextConfig(
        hidden_size=24, intermediate_size=20, num_local_experts=6, num_experts_per_tok=1
    )
    return cfg, Llama4TextMoe(config)


def of_llama4(w):
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return {
        "router.weight": w["router.weight"],
        "experts.gate_up_proj": torch.cat([w["experts.w1"], w["experts.w3"]], dim=1).mT,
        "experts.down_proj": w["experts.w2"].mT,
        **{f"shared_expert.{b}.weight": w[f"shared.{a}.weight"] for a, b in names.items()},
    }


def gpt_oss():
    cfg = gpt_oss_model(**SIZES, n_experts=7, top_k=3, vocab_size=64, sequence_length=64)
    # Lower than published, so that it cuts many of these inputs.
    cfg.layers[0].feed_forward.experts.activation.limit = 0.7
    config = transformers.GptOssConfig(
        hidden_size=24,
        intermediate_size=20,
        num_local_experts=7,
        num_experts_per_tok=3,
        swiglu_limit=0.7,
    )
    return cfg, GptOssMLP(config)


def of_gpt_oss(w):
    """Gates stand between what they let pass."""
    weights = torch.stack([w["experts.w1"], w["experts.w3"]], dim=2).flatten(1, 2)
    return {
        "router.weight": w["router.weight"],
        "router.bias": w["router.bias"],
        "experts.gate_up_proj": weights.mT,
        "experts.gate_up_proj_bias": torch.stack(
            [w["experts.bias1"], w["experts.bias3"]], -1
        ).flatten(1),
        "experts.down_proj": w["experts.w2"].mT,
        "experts.down_proj_bias": w["experts.bias2"],
    }


@pytest.mark.parametrize(
    "pair, of_theirs", [(qwen3, of_qwen3), (llama4, of_llama4), (gpt_oss, of_gpt_oss)]
)
def test_experts_are_those_of_transformers(pair, of_theirs):
    """With our weights in both: outputs, and gradients of every weight and of the inputs."""
    cfg, theirs = pair()
    ours = build(cfg).layers[0].feed_forward
    materialize(ours, "cpu")
    initialize(ours, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in ours.parameters():  # no bias is as it starts
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    theirs.load_state_dict(of_theirs(weights))

    x_BLD = torch.randn(2, 40, 24, generator=generator)
    direction_BLD = torch.randn(2, 40, 24, generator=generator)
    x, y = (x_BLD.clone().requires_grad_() for _ in range(2))
    out, load = ours(x)
    expected = theirs(y)
    expected = (expected[0] if isinstance(expected, tuple) else expected).view_as(out)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert (load.tokens_E > 0).all()
    (out * direction_BLD).sum().backward()
    (expected * direction_BLD).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    gradients = of_theirs({name: p.grad for name, p in ours.named_parameters()})
    for name, p in theirs.named_parameters():
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(
            gradients[name], p.grad, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


# Of config.json on the Hugging Face hub; where transformers' defaults say the same, those.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
LLAMA4 = {
    "llama4_scout": {
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "rope_parameters": LLAMA3_ROPE,
    },
    "llama4_maverick": {
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
GPT_OSS = {
    "gpt_oss_20b": {"num_hidden_layers": 24, "num_local_experts": 32},
    "gpt_oss_120b": {"num_hidden_layers": 36, "num_local_experts": 128},
}
QWEN3 = {
    "qwen3_30b_a3b": {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "moe_intermediate_size": 768,
    },
    "qwen3_235b_a22b": {
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "moe_intermediate_size": 1536,
    },
}


def n_parameters(model_class, config):
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


@pytest.mark.parametrize("recipe", LLAMA4)
def test_llama4_is_as_published(recipe):
    config = transformers.Llama4TextConfig(max_position_embeddings=262_144, **LLAMA4[recipe])
    ours = build(compose([f"config:{recipe}"])).model
    assert ours.n_parameters() == n_parameters(transformers.Llama4ForCausalLM, config)
    assert ours.max_sequence_length == config.max_position_embeddings
    assert ours.norm.eps == config.rms_norm_eps
    for i, block in enumerate(ours.layers):
        attention, scores = block.attention, block.feed_forward
        mixture = isinstance(scores, MixtureOfExperts)
        assert mixture == (i in config.moe_layers)
        if mixture:
            assert scores.router.top_k == config.num_experts_per_tok
        local = bool(config.no_rope_layers[i])
        assert (attention.rope is not None) == local
        assert attention.visibility.chunk == (config.attention_chunk_size if local else None)
        for norm in (attention.q_norm, attention.k_norm):
            assert (norm is not None) == (local and config.use_qk_norm)
            assert norm is None or norm.eps == config.rms_norm_eps
        if local:
            assert attention.rope.theta == 500_000.0 and attention.temperature is None
        else:
            temperature = attention.temperature
            assert temperature.scale == config.attn_scale
            assert temperature.floor_scale == config.floor_scale
    scaling = ours.layers[0].attention.rope.scaling
    assert (scaling is not None) == (config.rope_parameters["rope_type"] == "llama3")
    if scaling is not None:
        assert {
            name: config.rope_parameters[name] for name in vars(scaling) if "factor" in name
        } == {name: value for name, value in vars(scaling).items() if "factor" in name}
        assert scaling.original_max_positions == 8192


@pytest.mark.parametrize("recipe", GPT_OSS)
def test_gpt_oss_is_as_published(recipe):
    config = transformers.GptOssConfig(**GPT_OSS[recipe])
    ours = build(compose([f"config:{recipe}"])).model
    assert ours.n_parameters() == n_parameters(transformers.GptOssForCausalLM, config)
    assert ours.max_sequence_length == config.max_position_embeddings
    assert ours.norm.eps == config.rms_norm_eps
    for block, kind in zip(ours.layers, config.layer_types, strict=True):
        window = config.sliding_window if kind == "sliding_attention" else None
        assert block.attention.visibility.window == window
        assert block.feed_forward.router.top_k == config.num_experts_per_tok
        activation = block.feed_forward.experts.activation
        assert (activation.alpha, activation.limit) == (config.swiglu_alpha, config.swiglu_limit)
    rope, theirs = ours.layers[0].attention.rope, config.rope_parameters
    assert rope.theta == config.default_theta
    assert rope.scaling.original_max_positions == theirs["original_max_position_embeddings"]
    for name in ("factor", "beta_fast", "beta_slow", "truncate"):
        assert getattr(rope.scaling, name) == theirs[name]


@pytest.mark.parametrize("recipe", QWEN3)
def test_qwen3_mixtures_are_as_published(recipe):
    config = transformers.Qwen3MoeConfig(
        **QWEN3[recipe], head_dim=128, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True
    )
    ours = build(compose([f"config:{recipe}"])).model
    assert ours.n_parameters() == n_parameters(transformers.Qwen3MoeForCausalLM, config)
    for block in ours.layers:
        router = block.feed_forward.router
        assert (router.top_k, router.normalize) == (8, True)

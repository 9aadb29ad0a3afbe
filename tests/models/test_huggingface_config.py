"""What config.json tells of a model, in all its forms, and what it cannot tell."""

import copy
import inspect

import fiddle as fdl
import pytest

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.activation import ClampedSwiGLU, SwiGLU
from nanigpt.models.attention import Attention
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import Embedding, TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.init import Constant
from nanigpt.models.latent_attention import LatentAttention
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.moe.router import Router
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling
from tests.models.huggingface import FAMILIES, tiny_model

NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}  # by kind of layer


def version_5(config):
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    rope = {"rope_theta": config["rope_theta"], **scaling}
    return {**without("rope_theta", "rope_scaling")(config), "rope_parameters": rope}


def without(*names):
    def change(config):
        return {name: value for name, value in config.items() if name not in names}

    return change


def yarn(**arguments):
    def change(config):
        kept = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
        return {**config, "rope_scaling": {**kept, **arguments}}

    return change


def short_yarn(config):
    return {
        **config,
        "rope_scaling": {"type": "yarn", "factor": 4},
        "max_position_embeddings": 16,
    }


def numbered_as_version_5(config):
    return {**without("num_experts")(config), "num_local_experts": config["num_experts"]}


def rotating(part):
    """Version 5 has it beside the other values of RoPE."""

    def change(config):
        config = version_5(config)
        config["rope_parameters"]["partial_rotary_factor"] = part
        return config

    return change


def replaced(**fields):
    return lambda config: {**config, **fields}


@pytest.mark.parametrize(
    "family, shape, change",
    [
        ("llama", "tied", version_5),
        ("llama", "scaled", version_5),
        ("llama", "yarn", version_5),
        ("llama", "yarn", rotating(1.0)),
        ("llama", "tied", replaced(partial_rotary_factor=1, rope_scaling={"type": "default"})),
        ("llama", "tied", replaced(rope_scaling={"rope_type": "default", "factor": None})),
        ("qwen3", "windows", version_5),
        ("llama", "gqa", without("head_dim", "attention_bias", "mlp_bias", "rope_scaling")),
        ("llama", "tied", without("num_key_value_heads")),
        ("qwen3", "tied", without("use_sliding_window", "max_window_layers", "layer_types")),
        ("qwen3", "tied", replaced(sliding_window=4096)),
        ("qwen3", "last_windows", without("layer_types")),
        ("qwen3", "last_windows", replaced(layer_types=None)),
        ("qwen3", "deep", replaced(num_key_value_heads=None)),
        ("qwen3", "yarn", yarn()),
        ("qwen3", "yarn", yarn(beta_slow=None, mscale=1.0, mscale_all_dim=0.0)),
        ("qwen3", "yarn", short_yarn),
        ("qwen3_moe", "two_of_four", numbered_as_version_5),
        ("qwen3_moe", "two_of_four", replaced(intermediate_size=6144, sliding_window=4096)),
        (
            "qwen3_moe",
            "partly_dense",
            replaced(mlp_only_layers=[], decoder_sparse_step=2),
        ),
        ("gpt_oss", "alternating", without("layer_types", "swiglu_alpha", "hidden_act")),
        ("gpt_oss", "alternating", version_5),
        ("gpt_oss", "unscaled", version_5),
        ("llama4_text", "scout", without("layer_types", "no_rope_layers", "moe_layers")),
        ("llama4_text", "scout", replaced(no_rope_layers=[], attn_temperature_tuning=4)),
        (
            "llama4_text",
            "maverick",
            lambda config: without("moe_layers")({**config, "interleave_moe_layer_step": 2}),
        ),
    ],
)
def test_each_form_of_config_json_is_understood(family, shape, change, tmp_path):
    """Version 5 of transformers has `rope_parameters`; files leave out what is the default."""
    fields = FAMILIES[family].fields(build(tiny_model(family, shape)))
    told = change(copy.deepcopy(fields))
    assert told != fields
    assert not differences(fields, FAMILIES[family].normalized(told))


@pytest.mark.parametrize(
    "family, shape, change, told",
    [
        ("qwen3", "yarn", yarn(attention_factor=1.0), "'attention_factor': 1.0"),
        ("qwen3", "yarn", yarn(truncate=False), "'truncate': False"),
        ("qwen3", "yarn", yarn(mscale=2.0, mscale_all_dim=1.0), "'attention_factor': 1.12"),
        ("qwen3", "yarn", replaced(rope_scaling=None), "has rope_scaling=None, expected {"),
        ("llama", "scaled", replaced(rope_scaling=None), "has rope_scaling=None, expected {"),
        ("qwen3", "last_windows", replaced(use_sliding_window=False), "has use_sliding_window=F"),
        ("qwen3", "last_windows", replaced(sliding_window=17), "has sliding_window=17"),
        (
            "qwen3",
            "last_windows",
            lambda config: without("layer_types")({**config, "max_window_layers": 2}),
            "has layer_types=['full_attention', 'full_attention', 'sliding_attention'], expected",
        ),
        ("qwen3", "tied", replaced(layer_types=["chunked_attention"] * 3), "has layer_types=['chu"),
        ("qwen3", "biased", without("attention_bias"), "has attention_bias=False, expected True"),
        ("qwen3_moe", "tied", replaced(norm_topk_prob=False), "has norm_topk_prob=False"),
        ("qwen3_moe", "tied", replaced(decoder_sparse_step=2), "has mlp_only_layers=[0]"),
        (
            "qwen3_moe",
            "partly_dense",
            replaced(use_sliding_window=False),
            "has sliding_window=None",
        ),
        (
            "qwen3",
            "tied",
            replaced(rope_parameters=NESTED),
            "has rope_scaling={'full_attention': {",
        ),
        ("llama", "tied", replaced(rope_scaling={"factor": 8}), "has rope_scaling={'factor': 8}, "),
        ("llama", "tied", replaced(rope_scaling={"type": "default", "factor": 8}), "'factor': 8},"),
        (
            "gpt_oss",
            "unscaled",
            replaced(rope_scaling={"factor": 8}),
            "has rope_scaling={'factor':",
        ),
        ("deepseek_v3", "tied", replaced(partial_rotary_factor=0.5), "partial_rotary_factor=0.5,"),
        ("llama", "scaled", rotating(0.5), "has partial_rotary_factor=0.5, expected 1.0"),
        ("gpt_oss", "clamped", without("swiglu_limit"), "has swiglu_limit=7.0, expected 0.3"),
        ("gpt_oss", "clamped", without("layer_types"), "has layer_types=['sliding_attention', 'f"),
        ("gpt_oss", "unscaled", without("rope_scaling"), "has rope_scaling={'rope_type': 'yarn'"),
        ("llama4_text", "scout", replaced(use_qk_norm=False), "has use_qk_norm=False"),
        (
            "llama4_text",
            "scout",
            replaced(no_rope_layers=[1] * 4),
            "has no_rope_layers=[1, 1, 1, 1]",
        ),
        ("llama4_text", "scout", without("floor_scale"), "has floor_scale=8192, expected 8"),
        ("llama4_text", "scout", without("attn_scale"), "has attn_scale=0.1, expected 0.5"),
        ("llama4_text", "maverick", without("moe_layers"), "has moe_layers=[0, 1, 2, 3]"),
        (
            "llama4_text",
            "two_of_five",
            without("attn_temperature_tuning"),
            "has attn_temperature_tuning=True, expected False",
        ),
    ],
)
def test_another_model_in_config_json_is_told(family, shape, change, told):
    fields = FAMILIES[family].fields(build(tiny_model(family, shape)))
    found = differences(fields, FAMILIES[family].normalized(change(copy.deepcopy(fields))))
    assert any(told in line for line in found), found


def constant():
    return fdl.Config(Constant, value=1.0)


@pytest.mark.parametrize(
    "family, argument, value, told",
    [
        ("llama", "window", 8, "llama: layers[1].attention.window is 8: expected None"),
        ("llama", "chunk", 8, "llama: layers[1].attention.chunk is 8: expected None"),
        ("qwen3", "chunk", 8, "qwen3: layers[1].attention.chunk is 8: expected None"),
        (
            "llama",
            "temperature",
            fdl.Config(AttentionTemperature),
            "llama: layers[1].attention.temperature is AttentionTemperature: expected None",
        ),
        ("llama", "rope", None, "llama: layers[1].attention.rope is None: expected one"),
        ("qwen3", "rope", None, "qwen3: layers[1].attention.rope is None: expected one"),
        (
            "llama",
            "sink",
            fdl.Config(AttentionSink, n_heads=4, initializer=constant()),
            "llama has no layers.1.attention.sink.weight",
        ),
        (
            "llama",
            "q_norm",
            fdl.Config(RMSNorm, dim=8, initializer=constant()),
            "qwen3: layers[0].attention.q_norm is None: expected one",
        ),
        ("qwen3", "k_norm", None, "qwen3: layers[1].attention.k_norm is None: expected one"),
    ],
)
def test_what_no_config_json_can_say_is_refused(family, argument, value, told, tmp_path):
    cfg = tiny_model(family, "tied")
    setattr(cfg.layers[1].attention, argument, value)
    with pytest.raises(UsageError) as caught:
        save_pretrained(build(cfg), tmp_path / "out")
    assert f"  - {told}" in str(caught.value).splitlines(), str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "family, shape, path, value, told",
    [
        (
            "qwen3_moe",
            "tied",
            "router.scores",
            "sigmoid",
            "router.scores is 'sigmoid': expected 's",
        ),
        ("qwen3_moe", "tied", "router.scale", 2.5, "router.scale is 2.5: expected 1.0"),
        ("qwen3_moe", "tied", "router.n_groups", 2, "router.n_groups is 2: expected 1"),
        (
            "qwen3_moe",
            "tied",
            "experts.weighs",
            "inputs",
            "experts.weighs is 'inputs': expected 'o",
        ),
        ("gpt_oss", "clamped", "router.normalize", False, "router.normalize is False: expected Tr"),
        ("llama4_text", "scout", "router.normalize", True, "router.normalize is True: expected Fa"),
        ("llama4_text", "scout", "experts.weighs", "outputs", "experts.weighs is 'outputs': expec"),
    ],
)
def test_mixtures_that_no_config_json_can_say_are_refused(family, shape, path, value, told):
    cfg = tiny_model(family, shape)
    part, name = path.split(".")
    setattr(getattr(cfg.layers[1].feed_forward, part), name, value)
    with pytest.raises(UsageError) as caught:
        family_of(build(cfg))
    assert f"{family}: layers[1].feed_forward.{told}" in str(caught.value)


@pytest.mark.parametrize(
    "family, shape, path, value, told",
    [
        (
            "qwen3_moe",
            "tied",
            "feed_forward.router.balance_rate",
            0.1,
            "has no layers.1.feed_forwar",
        ),
        (
            "qwen3_moe",
            "tied",
            "feed_forward.router.top_k",
            2,
            "layers differ in router.top_k (3, 2",
        ),
        (
            "qwen3_moe",
            "tied",
            "feed_forward.experts.activation",
            fdl.Config(ClampedSwiGLU),
            "layers have ClampedSwiGLU: expected SwiGLU",
        ),
        (
            "gpt_oss",
            "clamped",
            "feed_forward.router.bias",
            None,
            "a router or experts have no bias",
        ),
        (
            "gpt_oss",
            "clamped",
            "feed_forward.experts.bias",
            None,
            "a router or experts have no bia",
        ),
        (
            "gpt_oss",
            "clamped",
            "attention.sink",
            None,
            "layers[1].attention.sink is None: expected",
        ),
        (
            "gpt_oss",
            "alternating",
            "attention.window",
            8,
            "layers differ in attention.window (16, 8",
        ),
        ("llama4_text", "scout", "feed_forward.shared", None, "a mixture has no shared expert"),
        (
            "llama4_text",
            "scout",
            "attention.q_norm",
            None,
            "layers differ in q_norm and k_norm, whe",
        ),
        (
            "llama4_text",
            "scout",
            "attention.rope",
            None,
            "a layer without RoPE has a norm of heads",
        ),
        (
            "llama4_text",
            "scout",
            "attention.window",
            8,
            "layers[1].attention.window is 8: expected",
        ),
        (
            "llama4_text",
            "maverick",
            "attention.temperature",
            None,
            "layers differ in temperature, w",
        ),
        (
            "llama4_text",
            "scout",
            "attention.temperature",
            fdl.Config(AttentionTemperature),
            "a layer with RoPE has a temperature: expected none",
        ),
    ],
)
def test_layers_of_mixtures_that_no_config_json_can_say(family, shape, path, value, told):
    cfg = tiny_model(family, shape)
    *parents, name = path.split(".")
    node = cfg.layers[1]
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, name, value)
    with pytest.raises(UsageError) as caught:
        family_of(build(cfg))
    assert any(
        line.startswith(f"  - {family}") and told in line for line in str(caught.value).splitlines()
    ), str(caught.value)


def test_scores_that_yarn_scales_are_refused():
    cfg = tiny_model("qwen3", "yarn")
    cfg.layers[0].attention.rope.scaling.mscale_all_dim = 0.5
    with pytest.raises(UsageError, match="rope.scaling.mscale_all_dim is 0.5: expected 0"):
        family_of(build(cfg))


def test_norms_of_heads_have_the_eps_of_all():
    cfg = tiny_model("qwen3", "untied")
    cfg.layers[1].attention.k_norm.eps = 1e-5
    with pytest.raises(UsageError, match=r"qwen3: layers differ in norm.eps \(1e-06, 1e-05\)"):
        family_of(build(cfg))


@pytest.mark.parametrize("path", ["attention.k_norm", "feed_forward_norm"])
@pytest.mark.parametrize("family, shape", [("qwen3", "untied"), ("qwen3_moe", "tied")])
def test_norms_without_a_gain_are_refused(family, shape, path):
    cfg = tiny_model(family, shape)
    node = cfg.layers[1]
    for name in path.split("."):
        node = getattr(node, name)
    node.initializer = None
    with pytest.raises(UsageError, match=f"{family}: a norm has no gain: expected one"):
        family_of(build(cfg))


def test_every_argument_of_the_modules_is_accounted_for():
    """A new argument can make another model of the same weights: fields() must tell it, or
    refuse it, before it is added here."""

    def arguments(kind):
        return set(inspect.signature(kind).parameters)

    linear = {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}
    blocks = {"attention_norm", "attention", "feed_forward_norm", "feed_forward"}
    told = {"n_heads", "n_kv_heads", "head_dim", "rope"}
    refused = {"q_norm", "k_norm", "window", "chunk", "sink", "temperature", "score_soft_cap"}
    # `core` and recomputation are ways to compute the same, as is `float8`; weights are there, so
    # that it does not matter how they began.
    assert arguments(Decoder) == {"embedding", "layers", "norm", "head", "multi_token", "positions"}
    refused_of_blocks = {"post_attention_norm", "post_feed_forward_norm"}
    training = {"dropout", "activation_checkpointing"}
    assert arguments(TransformerBlock) == {*blocks, *refused_of_blocks, *training}
    assert arguments(Attention) - linear == {*told, *refused, "core"}
    queries = {"wq_a", "q_norm", "wq_b"}
    latents = {"wkv_a", "kv_norm", "wkv_b"}
    sizes = {"n_heads", "nope_head_dim", "v_head_dim", "rope"}
    assert arguments(LatentAttention) - linear == (
        {*queries, *latents, *sizes, "window", "chunk", "core"}
    )
    assert arguments(FeedForward) - linear == {"activation"}  # refused but for SwiGLU
    assert arguments(MixtureOfExperts) == {"router", "experts", "shared"}
    sizes = {"n_experts", "dim", "initializer"}
    chosen = {"top_k", "scores", "normalize", "scale", "n_groups", "top_groups"}
    assert arguments(Router) == {*sizes, *chosen, "bias", "balance_rate"}
    others = {"hidden_dim", "output_initializer", "bias", "activation", "weighs"}
    assert arguments(Experts) == {*sizes, *others, "kernel", "float8"}
    assert not arguments(SwiGLU)
    assert arguments(ClampedSwiGLU) == {"alpha", "limit"}
    assert arguments(Embedding) == {"vocab_size", "dim", "initializer", "compute_dtype"}
    assert arguments(TiedHead) == {"embedding", "soft_cap"}  # refused
    assert arguments(Linear) == {"in_dim", "out_dim", "initializer", "bias", "float8"}
    assert arguments(RMSNorm) == {"dim", "initializer", "eps"}
    assert arguments(RotaryEmbedding) == {"head_dim", "max_sequence_length", "theta", "scaling"}
    frequencies = {"factor", "original_max_positions"}
    assert arguments(Llama3Scaling) == frequencies | {"low_freq_factor", "high_freq_factor"}
    of_yarn = {"beta_fast", "beta_slow", "attention_factor", "mscale_all_dim", "truncate"}
    assert arguments(YarnScaling) == frequencies | of_yarn

"""Each family against transformers: logits and gradients either way, published sizes, and what its
config.json can tell."""

import copy
import inspect

import fiddle as fdl
import pytest
import torch
from torch.nn.functional import cross_entropy

from nanigpt.config.build import build
from nanigpt.config.flag import compose
from nanigpt.errors import UsageError
from nanigpt.models.attention import Attention
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.decoder import Decoder, TransformerBlock
from nanigpt.models.embedding import Embedding, TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.init import Constant
from nanigpt.models.linear import Linear
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling
from tests.models.huggingface import (
    CASES,
    FAMILIES,
    VOCABULARY,
    random_model,
    randomize,
    tiny_model,
)
from tests.models.test_qwen3 import PUBLISHED as PUBLISHED_QWEN3

LOGITS = {"llama": 1e-5, "qwen3": 1e-5}  # greatest difference
GRADIENTS = 1e-4

# hidden_size, intermediate_size, layers, heads, KV heads, tied, factor of RoPE: config.json of
# meta-llama/Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B and Llama-3.1-405B.
PUBLISHED_LLAMA = {
    "llama3_1b": (2048, 8192, 16, 32, 8, True, 32.0),
    "llama3_3b": (3072, 8192, 28, 24, 8, True, 32.0),
    "llama3_8b": (4096, 14_336, 32, 32, 8, False, 8.0),
    "llama3_70b": (8192, 28_672, 80, 64, 8, False, 8.0),
    "llama3_405b": (16_384, 53_248, 126, 128, 8, False, 8.0),
}


def llama(hidden, intermediate, layers, heads, kv_heads, tied, factor):
    return {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }


def qwen3(hidden, intermediate, layers, heads, tied):
    return {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": tied,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
    }


PUBLISHED = {
    **{name: llama(*sizes) for name, sizes in PUBLISHED_LLAMA.items()},
    **{name: qwen3(*sizes) for name, sizes in PUBLISHED_QWEN3.items()},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_models(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = build(compose([f"config:{name}"])).model
    family = FAMILIES[PUBLISHED[name]["model_type"]]
    assert family_of(model) is family
    assert not differences(family.fields(model), family.normalized(PUBLISHED[name]))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**copy.deepcopy(PUBLISHED[name]))
        )
    assert model.n_parameters() == theirs.num_parameters()


def assert_equal_models(family, ours, theirs, folder):
    """Logits, and gradients of the loss; `folder` is for gradients under our names."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, 61), generator=generator)
    tokens, labels = tokens[:, :-1], tokens[:, 1:]
    theirs.eval()
    logits, expected = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, atol=LOGITS[family], rtol=0)
    for found in (logits, expected):
        cross_entropy(found.flatten(0, 1), labels.flatten()).backward()
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    theirs.save_pretrained(folder)
    gradients = copy.deepcopy(ours)
    Pretrained(folder, gradients).load(gradients)
    wanted = dict(gradients.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=GRADIENTS, rtol=0)
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("family, shape", CASES)
def test_transformers_computes_what_we_wrote(family, shape, tmp_path):
    from transformers import AutoModelForCausalLM

    model = random_model(family, shape)
    save_pretrained(model, tmp_path / "out", end_id=96)
    theirs, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not any(told.values()), told
    assert type(theirs).__name__ == FAMILIES[family].architecture
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 96
    assert_equal_models(family, model, theirs, tmp_path / "gradients")


@pytest.mark.parametrize("family, shape", CASES)
def test_we_compute_what_transformers_wrote(family, shape, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = random_model(family, shape, seed=2)
    described = AutoConfig.for_model(family, **FAMILIES[family].fields(ours))
    torch.manual_seed(3)
    theirs = randomize(AutoModelForCausalLM.from_config(described), seed=3)
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    Pretrained(tmp_path / "in", ours).load(ours)
    assert_equal_models(family, ours, theirs, tmp_path / "gradients")


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


def replaced(**fields):
    return lambda config: {**config, **fields}


@pytest.mark.parametrize(
    "family, shape, change",
    [
        ("llama", "tied", version_5),
        ("llama", "scaled", version_5),
        ("llama", "yarn", version_5),
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
        ("qwen3", "yarn", replaced(rope_scaling=None), "has rope_scaling=None, the model {"),
        ("llama", "scaled", replaced(rope_scaling=None), "has rope_scaling=None, the model {"),
        ("qwen3", "last_windows", replaced(use_sliding_window=False), "has use_sliding_window=F"),
        ("qwen3", "last_windows", replaced(sliding_window=17), "has sliding_window=17"),
        (
            "qwen3",
            "last_windows",
            lambda config: without("layer_types")({**config, "max_window_layers": 2}),
            "has layer_types=['full_attention', 'full_attention', 'sliding_attention'], the model",
        ),
        ("qwen3", "tied", replaced(layer_types=["chunked_attention"] * 3), "has layer_types=['chu"),
        ("qwen3", "biased", without("attention_bias"), "has attention_bias=False, the model True"),
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


def test_every_argument_of_the_modules_is_accounted_for():
    """A new argument can make another model of the same weights: fields() must tell it, or
    refuse it, before it is added here."""

    def arguments(kind):
        return set(inspect.signature(kind).parameters)

    linear = {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}
    blocks = {"attention_norm", "attention", "feed_forward_norm", "feed_forward"}
    told = {"n_heads", "n_kv_heads", "head_dim", "rope"}
    refused = {"q_norm", "k_norm", "window", "chunk", "sink", "temperature"}  # or told
    # `core` and recomputation are ways to compute the same, as is `float8`; weights are there, so
    # that it does not matter how they began.
    assert arguments(Decoder) == {"embedding", "layers", "norm", "head"}
    assert arguments(TransformerBlock) == {*blocks, "activation_checkpointing"}
    assert arguments(Attention) - linear == {*told, *refused, "core"}
    assert arguments(FeedForward) <= linear
    assert arguments(Embedding) == {"vocab_size", "dim", "initializer", "compute_dtype"}
    assert arguments(TiedHead) == {"embedding"}
    assert arguments(Linear) == {"in_dim", "out_dim", "initializer", "bias", "float8"}
    assert arguments(RMSNorm) == {"dim", "initializer", "eps"}
    assert arguments(RotaryEmbedding) == {"head_dim", "max_sequence_length", "theta", "scaling"}
    frequencies = {"factor", "original_max_positions"}
    assert arguments(Llama3Scaling) == frequencies | {"low_freq_factor", "high_freq_factor"}
    assert arguments(YarnScaling) == frequencies | {
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale_all_dim",
        "truncate",
    }

"""`--config=huggingface:DIR`: the model of a config.json, of each family, and what is refused."""

import json

import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config.check.build import build, check
from nanigpt.config.compose.flag import compose
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.data.tokenizer import HuggingFaceTokenizer
from nanigpt.errors import UsageError
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.init import initialize, materialize
from tests.data.test_tokenizer import train_bpe
from tests.models.huggingface import CASES, FAMILIES, POSITIONS, VOCABULARY, random_model
from tests.support import flags, metrics

# Every field that has no default for all, so that no size of a large model is left.
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "dtype": "float32",
}
THEIRS = {
    "llama": [
        {"intermediate_size": 56, "attention_bias": True, "mlp_bias": True},
        {
            "intermediate_size": 48,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ],
    "qwen3": [
        {"intermediate_size": 56, "head_dim": 10},
        {
            "intermediate_size": 40,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ],
    "qwen3_moe": [
        {
            "intermediate_size": 56,
            "head_dim": 8,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        }
    ],
    "gpt_oss": [
        {
            "intermediate_size": 24,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 12,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        }
    ],
    "llama4_text": [
        {
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "head_dim": 8,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 12,
            "floor_scale": 8,
            "num_hidden_layers": 4,
        }
    ],
    "deepseek_v3": [
        {
            "intermediate_size": 56,
            "moe_intermediate_size": 16,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 24,
            "kv_lora_rank": 20,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 10,
            "first_k_dense_replace": 1,
        }
    ],
}


def imported(folder):
    """The model of a folder with the weights there, in float32."""
    model = build(compose([f"huggingface:{folder}", "tag:ComputeDType=float32"]).model)
    materialize(model, "cpu")
    initialize(model, seed=0)
    Pretrained(folder, model).load(model)
    return model


@pytest.mark.parametrize("family, i", [(f, i) for f in FAMILIES for i in range(len(THEIRS[f]))])
def test_models_of_transformers_are_built(family, i, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **{**SMALL, **THEIRS[family][i]})
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    model = imported(tmp_path)
    tokens = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    assert sum(p.numel() for p in model.parameters()) == theirs.num_parameters()


@pytest.mark.parametrize("family, shape", CASES)
def test_each_shape_comes_back(family, shape, tmp_path):
    model = random_model(family, shape)
    save_pretrained(model, tmp_path / "hf")
    again = imported(tmp_path / "hf")
    tokens = torch.arange(2 * POSITIONS).view(2, -1) % VOCABULARY
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize(
    "recipe",
    [
        *("llama3_1b", "qwen3_0_6b", "qwen3_30b_a3b", "llama4_scout", "gpt_oss_20b"),
        "deepseek_v3_16b",
    ],
)
def test_a_recipe_has_the_model_of_its_config_json(recipe, tmp_path):
    cfg = compose([f"config:{recipe}"])
    model = check(cfg.model)
    family = family_of(model)
    write(tmp_path, model_type=family.model_type, **family.fields(model))
    found = compose([f"huggingface:{tmp_path / 'config.json'}"])
    assert fingerprint(found.model) == fingerprint(cfg.model)


def write(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))


def tiny(folder, family="llama", **fields):
    defaults = {**SMALL, **THEIRS[family][0], "model_type": family, "pad_token_id": 0}
    write(folder, **{**defaults, **fields})


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': expected one of 'llama', 'qwen3'"),
        ({"hidden_act": "gelu"}, "has hidden_act='gelu', expected 'silu'"),
        ({"sliding_window": 8}, "sliding_window=8: llama has no such field in nanigpt"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1: expected 0"),
        ({"layer_types": ["linear_attention"]}, "layer_types=['linear_attention']: llama has no"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_scaling={'rope_type': 'dynamic', 'factor': 2.0}: expected rope_type 'llama3', 'y",
        ),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "has no original_max_position_embe"),
        ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor=0.5, expected 1.0"),
        (
            {"hidden_size": "wide", "rope_theta": 10000},
            "it describes no model of llama (hidden_size='wide': expected int)",
        ),
        ({"intermediate_size": None}, "it has no intermediate_size"),
        ({"num_key_value_heads": 3}, "n_kv_heads=3: expected a divisor of n_heads=4"),
    ],
)
def test_what_cannot_be_carried_is_named(fields, told, tmp_path):
    tiny(tmp_path, **fields)
    with pytest.raises(UsageError) as caught:
        compose([f"huggingface:{tmp_path}"])
    message = str(caught.value)
    assert message.startswith(f"--config=huggingface:{tmp_path}: {tmp_path / 'config.json'}: ")
    assert told in message


@pytest.mark.parametrize("kinds", [[], ["full_attention"], {}, ""])
def test_too_few_kinds_of_layers_are_refused(kinds, tmp_path):
    tiny(tmp_path, "gpt_oss", layer_types=kinds)
    with pytest.raises(UsageError, match="it describes no model of gpt_oss"):
        compose([f"huggingface:{tmp_path}"])


def test_a_second_name_must_agree(tmp_path):
    tiny(tmp_path, "gpt_oss", experts_per_token=2)
    compose([f"huggingface:{tmp_path}"])
    tiny(tmp_path, "gpt_oss", experts_per_token=3)
    with pytest.raises(UsageError, match="experts_per_token=3: expected num_experts_per_tok=2"):
        compose([f"huggingface:{tmp_path}"])


def test_a_multimodal_model_gives_its_text_model(tmp_path):
    text = {**SMALL, **THEIRS["llama4_text"][0], "model_type": "llama4_text"}
    write(tmp_path, model_type="llama4", text_config=text, vision_config={})
    found = compose([f"huggingface:{tmp_path}"])
    write(tmp_path, **text)
    assert fingerprint(found) == fingerprint(compose([f"huggingface:{tmp_path}"]))


def test_the_tokenizer_is_the_folders(tmp_path):
    """It is named in the config; composing opens it not."""
    tiny(tmp_path)
    (tmp_path / "tokenizer.json").write_text("no JSON")
    cfg = compose([f"huggingface:{tmp_path}"])
    tokenizer = build(cfg.data.tokenizer)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.path == str(tmp_path / "tokenizer.json")


def test_a_run_begins_with_the_weights(tmp_path, caplog):
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "hf"
    config = AutoConfig.for_model("llama", **{**SMALL, **THEIRS["llama"][0]})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_bpe(folder / "tokenizer.json")
    caplog.set_level("INFO")
    short = ("fiddler:steps(2)", "tag:GlobalBatchSize=2", "set:evaluations[val].n_samples=2")
    given = flags(f"huggingface:{folder}", *short)
    converted = tmp_path / "converted"
    assert main(["convert", f"--from_hf={folder}", *given, f"--run_dir={converted}"]) == 0
    start = f"set:initial_weights={folder}"
    assert f"add --config={start}" in caplog.text
    assert main(["train", *given, f"--run_dir={converted}"]) == 0
    run = tmp_path / "run"
    assert main(["train", *given, *flags(start), f"--run_dir={run}"]) == 0
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(converted)]
    assert len(metrics(run)) == 2

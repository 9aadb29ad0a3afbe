"""Folders of weights: files and index, what is told of those that do not fit, and that nothing is left
of what fails."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.huggingface import reader, writer
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.llama import LLAMA
from nanigpt.models.huggingface.mapping import Rule
from nanigpt.models.huggingface.reader import Folder, Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from tests.models.huggingface import random_model, randomize, state, tiny_model


def test_several_files_have_an_index_and_read_back_equal(tmp_path):
    from transformers import AutoModelForCausalLM

    model, limit = random_model("llama", "gqa"), 30_000
    names = {f.name for f in save_pretrained(model, tmp_path / "out", max_shard_bytes=limit)}
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert names == {"config.json", "generation_config.json", "model.safetensors.index.json"} | {
        shard.name for shard in shards
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.n_parameters()
    for shard in shards:
        tensors = load_file(shard)
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        assert sum(t.nbytes for t in tensors.values()) <= limit
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(60).unsqueeze(0)
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    other = random_model("llama", "gqa", seed=5)
    Pretrained(tmp_path / "out", other).load(other)
    written = state(model)
    assert all(torch.equal(p, written[name]) for name, p in other.named_parameters())


def test_bfloat16_is_rounded_once(tmp_path):
    model = random_model("llama", "tied")
    save_pretrained(model, tmp_path / "out", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    embedding = model.embedding.weight.detach()
    assert torch.equal(stored["model.embed_tokens.weight"], embedding.bfloat16())
    assert "lm_head.weight" not in stored
    Pretrained(tmp_path / "out", model).load(model)
    assert torch.equal(model.embedding.weight, embedding.bfloat16().float())
    assert model.head.weight is model.embedding.weight


@pytest.fixture
def balanced(monkeypatch):
    """A function that gives a model what routers have: a persistent buffer beside parameters; and one
    that is not persistent."""
    rule = Rule("layers.{i}.feed_forward.expert_bias", "model.layers.{i}.mlp.gate.correction")
    known = dataclasses.replace(LLAMA, rules=(*LLAMA.rules, rule))
    for module in (reader, writer):
        monkeypatch.setattr(module, "family_of", partial(family_of, families=(known,)))

    def give(model, seed):
        device = model.norm.weight.device
        for layer in model.layers:
            mlp = layer.feed_forward
            mlp.register_buffer("expert_bias", torch.full((6,), 0.3, device=device))
            mlp.register_buffer("tokens", torch.zeros(6, device=device), persistent=False)
        return model if device.type == "meta" else randomize(model, seed=seed)

    return give


def test_persistent_buffers_go_in_and_out_as_float32(balanced, tmp_path):
    model = balanced(random_model("llama", "tied"), seed=8)
    save_pretrained(model, tmp_path / "out", dtype=torch.bfloat16, max_shard_bytes=9000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        stored |= load_file(shard)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    names = [f"model.layers.{i}.mlp.gate.correction" for i in range(2)]
    assert {name for name, t in stored.items() if t.dtype != torch.bfloat16} == set(names)
    assert "expert_bias" not in dict(model.named_parameters())
    assert not any("tokens" in name for name in stored if "embed_tokens" not in name)
    other = balanced(random_model("llama", "tied"), seed=9)
    Pretrained(tmp_path / "out", other).load(other)
    for i, name in enumerate(names):
        bias = model.layers[i].feed_forward.expert_bias
        assert torch.equal(stored[name], bias) and not torch.equal(bias, bias.bfloat16().float())
        assert torch.equal(other.layers[i].feed_forward.expert_bias, bias)


def test_a_persistent_buffer_that_is_missing_or_unknown_is_told(balanced, written, tmp_path):
    folder, _ = written
    with pytest.raises(UsageError) as caught:
        Pretrained(folder, balanced(build(tiny_model("llama", "tied")), seed=0))
    missing = (
        "missing model.layers.1.mlp.gate.correction [6], for layers.1.feed_forward.expert_bias"
    )
    assert missing in str(caught.value)
    with pytest.raises(UsageError, match="llama has no layers.0.feed_forward.expert_bias"):
        family_of(balanced(build(tiny_model("llama", "tied")), seed=0))


@pytest.fixture
def written(tmp_path):
    """A folder of tensors that each test spoils, and a function that does it."""
    folder = tmp_path / "in"
    save_pretrained(random_model("llama", "tied", seed=7), folder)

    def spoil(**tensors):
        file = folder / "model.safetensors"
        kept = {**load_file(file), **tensors}
        save_file({n: t for n, t in kept.items() if t is not None}, file)

    return folder, spoil


@pytest.mark.parametrize(
    "family, shape, field, value",
    [
        ("llama", "gqa", "num_attention_heads", 0),
        ("llama", "gqa", "rope_scaling", "yarn"),
        ("llama", "gqa", "quantization_config", "fp8"),
        ("qwen3", "windows", "num_hidden_layers", None),
        ("gpt_oss", "alternating", "num_hidden_layers", "two"),
    ],
)
def test_a_config_of_values_that_no_model_has_is_told(family, shape, field, value, tmp_path):
    model = random_model(family, shape)
    save_pretrained(model, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    config = {**json.loads(file.read_text()), field: value}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(UsageError, match="config.json"):
        Pretrained(tmp_path / "out", model)


def refused(folder, shape="tied"):
    """The message, after no parameter was changed."""
    model = random_model("llama", shape)
    before = state(model)
    with pytest.raises(UsageError) as caught:
        Pretrained(folder, model).load(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(UsageError) as checked:
        Pretrained(folder, build(tiny_model("llama", shape)))  # on meta
    assert str(checked.value) == str(caught.value)
    return str(caught.value)


def test_tensors_that_do_not_fit_are_all_listed(written):
    folder, spoil = written
    spoil(
        **{
            "model.norm.weight": None,
            "model.layers.0.mlp.up_proj.weight": torch.zeros(56, 31),
            "model.layers.1.self_attn.q_proj.weight": torch.zeros(32, 32, dtype=torch.int8),
            "model.layers.1.self_attn.q_norm.weight": torch.zeros(8),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        }
    )
    assert refused(folder) == (
        f"{folder} does not have the weights of this model, 4 problems:"
        "\n  - model.layers.0.mlp.up_proj.weight is [56, 31], expected [56, 32]"
        "\n  - model.layers.1.self_attn.q_proj.weight has dtype I8, expected one of F64, F32, F16,"
        " BF16"
        "\n  - missing model.norm.weight [32], for norm.weight"
        "\n  - unexpected model.layers.1.self_attn.q_norm.weight [8]"
    )


def test_a_long_list_is_cut(written):
    folder, spoil = written
    spoil(**{f"model.more.{i}": torch.zeros(1) for i in range(30)})
    message = refused(folder)
    assert "30 problems:" in message and message.endswith("- and 10 more")


def test_a_tied_head_may_be_stored_but_not_differ(written):
    folder, spoil = written
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    spoil(**{"lm_head.weight": embedding.clone()})
    Pretrained(folder, build(tiny_model("llama", "tied")))
    spoil(**{"lm_head.weight": embedding + 1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refused(folder)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"rope_theta": 1e4}, "has rope_theta=10000.0, expected 500000.0"),
        ({"rms_norm_eps": 1e-6}, "has rms_norm_eps=1e-06, expected 1e-05"),
        ({"hidden_act": "gelu"}, "has hidden_act='gelu', expected 'silu'"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings=False, expected True"),
        ({"num_key_value_heads": 2}, "has num_key_value_heads=2, expected 4"),
        ({"model_type": "mistral"}, "has model_type='mistral', expected 'llama'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "has rope_scaling={'rope_type': 'linear', 'factor': 2.0}, expected None",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_though_every_tensor_fits(written, change, told):
    folder, _ = written
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert told in refused(folder)


def test_folders_that_cannot_be_read(written, tmp_path):
    folder, _ = written
    file = folder / "model.safetensors"
    assert "no such folder" in refused(tmp_path / "nowhere")
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file} cannot be read" in refused(folder)
    file.rename(folder / "pytorch_model.bin")
    assert "has no model.safetensors; save it as safetensors" in refused(folder)
    (folder / "config.json").write_text("[")
    assert "config.json cannot be read" in refused(folder)
    (folder / "config.json").unlink()
    assert refused(folder) == f"{folder} has no config.json"


def test_a_file_of_the_index_that_is_missing_is_named(tmp_path):
    folder = tmp_path / "in"
    save_pretrained(random_model("llama", "tied"), folder, max_shard_bytes=20_000)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    assert f"has no {gone.name}" in refused(folder)


def test_only_headers_are_read_to_check(written, monkeypatch):
    folder, _ = written
    monkeypatch.setattr(
        "nanigpt.models.huggingface.views.Stored.read", lambda *_: pytest.fail("read a tensor")
    )
    Pretrained(folder, build(tiny_model("llama", "tied")))
    assert "model.norm.weight" in Folder(folder).names


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    model = random_model("llama", "gqa")
    model.layers[1].attention_norm.eps = 1e-6
    with pytest.raises(UsageError, match=r"llama: layers differ in norm.eps \(1e-05, 1e-06\)"):
        save_pretrained(model, tmp_path / "out")
    model = random_model("llama", "gqa")
    model.layers[1].extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match=r"llama has no layers.1.extra"):
        save_pretrained(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanigpt.models.huggingface.writer._write", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        save_pretrained(random_model("llama", "gqa"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        save_pretrained(random_model("llama", "gqa"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["/tmp/evil", "../evil", "a/b", "..", ""])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    model = random_model("llama", "gqa")
    with pytest.raises(UsageError, match="is not the name of a file"):
        save_pretrained(model, tmp_path / "out", texts={name: "x"})
    assert list(tmp_path.iterdir()) == []
    save_pretrained(model, tmp_path / "out", max_shard_bytes=30_000)
    index = tmp_path / "out/model.safetensors.index.json"
    record = json.loads(index.read_text())
    record["weight_map"][next(iter(record["weight_map"]))] = name
    index.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="index.json: .* is not the name of a file"):
        Folder(tmp_path / "out")

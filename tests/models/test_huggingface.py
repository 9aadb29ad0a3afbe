"""Weights to transformers and from it: the same logits and gradients; what does not fit is told."""

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from nanigpt.config.build import build
from nanigpt.config.flag import compose
from nanigpt.errors import UsageError
from nanigpt.models.attention import Attention
from nanigpt.models.decoder import Decoder, TransformerBlock
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.huggingface.llama import LLAMA, fields
from nanigpt.models.huggingface.reader import Folder, Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.rope import RotaryEmbedding
from tests.models.huggingface import SHAPES, random_model, randomize, state, tiny_llama

# hidden_size, intermediate_size, layers, heads, KV heads, tied, factor of RoPE: config.json of
# meta-llama/Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B and Llama-3.1-405B.
PUBLISHED = {
    "llama3_1b": (2048, 8192, 16, 32, 8, True, 32.0),
    "llama3_3b": (3072, 8192, 28, 24, 8, True, 32.0),
    "llama3_8b": (4096, 14_336, 32, 32, 8, False, 8.0),
    "llama3_70b": (8192, 28_672, 80, 64, 8, False, 8.0),
    "llama3_405b": (16_384, 53_248, 126, 128, 8, False, 8.0),
}


def published(name: str) -> dict:
    hidden, intermediate, layers, heads, kv_heads, tied, factor = PUBLISHED[name]
    return {
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_models(name):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = build(compose([f"config:{name}"])).model
    described = fields(model)
    described.pop("max_position_embeddings")
    assert described == published(name)
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**published(name)))
    assert model.n_parameters() == theirs.num_parameters()


def tokens_and_labels():
    tokens = torch.randint(97, (2, 61), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def assert_equal_models(ours, theirs):
    """Logits, and gradients of the loss."""
    tokens, labels = tokens_and_labels()
    theirs.eval()
    logits, expected = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for found in (logits, expected):
        cross_entropy(found.flatten(0, 1), labels.flatten()).backward()
    parameters = dict(ours.named_parameters())
    links, unknown = LLAMA.links(parameters)
    assert not unknown
    wanted = dict(theirs.named_parameters())
    for link in links:
        grads = link.export([parameters[name].grad for name in link.ours], {})
        for name, grad in grads.items():
            torch.testing.assert_close(grad, wanted.pop(name).grad, atol=1e-4, rtol=0)
    assert not wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_computes_what_we_wrote(shape, tmp_path):
    from transformers import AutoModelForCausalLM

    model = random_model(shape)
    save_pretrained(model, tmp_path / "out", end_id=96)
    theirs, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not any(told.values()), told
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 96
    assert_equal_models(model, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_we_compute_what_transformers_wrote(shape, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = random_model(shape, seed=2)
    described = fields(ours)
    torch.manual_seed(3)
    theirs = randomize(LlamaForCausalLM(LlamaConfig(**described)), seed=3)
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    Pretrained(tmp_path / "in", ours).load(ours)
    assert_equal_models(ours, theirs)


def test_several_files_have_an_index_and_read_back_equal(tmp_path):
    from transformers import AutoModelForCausalLM

    model, limit = random_model("gqa"), 30_000
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
    assert_equal_models(model, AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    other = random_model("gqa", seed=5)
    Pretrained(tmp_path / "out", other).load(other)
    written = state(model)
    assert all(torch.equal(p, written[name]) for name, p in other.named_parameters())


def test_bfloat16_is_rounded_once(tmp_path):
    model = random_model("tied")
    save_pretrained(model, tmp_path / "out", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    embedding = model.embedding.weight.detach()
    assert torch.equal(stored["model.embed_tokens.weight"], embedding.bfloat16())
    assert "lm_head.weight" not in stored
    Pretrained(tmp_path / "out", model).load(model)
    assert torch.equal(model.embedding.weight, embedding.bfloat16().float())
    assert model.head.weight is model.embedding.weight


@pytest.fixture
def written(tmp_path):
    """A folder of tensors that each test spoils, and a function that does it."""
    folder = tmp_path / "in"
    save_pretrained(random_model("tied", seed=7), folder)

    def spoil(**tensors):
        file = folder / "model.safetensors"
        kept = {**load_file(file), **tensors}
        save_file({n: t for n, t in kept.items() if t is not None}, file)

    return folder, spoil


def refused(folder, shape="tied"):
    """The message, after no parameter was changed."""
    model = random_model(shape)
    before = state(model)
    with pytest.raises(UsageError) as caught:
        Pretrained(folder, model).load(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(UsageError) as checked:
        Pretrained(folder, build(tiny_llama(shape)))  # on meta
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
    Pretrained(folder, build(tiny_llama("tied")))
    spoil(**{"lm_head.weight": embedding + 1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refused(folder)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"rope_theta": 1e4}, "has rope_theta=10000.0, the model 500000.0"),
        ({"rms_norm_eps": 1e-6}, "has rms_norm_eps=1e-06, the model 1e-05"),
        ({"hidden_act": "gelu"}, "has hidden_act='gelu', the model 'silu'"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings=False, the model True"),
        ({"num_key_value_heads": 2}, "has num_key_value_heads=2, the model 4"),
        ({"model_type": "mistral"}, "has model_type='mistral', the model is 'llama'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "has rope_scaling={'rope_type': 'linear', 'factor': 2.0}, the model None",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_though_every_tensor_fits(written, change, told):
    folder, _ = written
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert told in refused(folder)


@pytest.mark.parametrize("form", ["version 4", "version 5", "shortest"])
def test_each_form_of_config_json_is_understood(form, written):
    """Version 5 of transformers has `rope_parameters`; old files leave out what was the default."""
    folder, _ = written
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if form != "version 4":
        del config["rope_scaling"]
        theta = config.pop("rope_theta")
        config["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    if form == "shortest":
        for name in ("head_dim", "attention_bias", "mlp_bias", "num_key_value_heads"):
            del config[name]
    file.write_text(json.dumps(config))
    Pretrained(folder, build(tiny_llama("tied")))


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
    save_pretrained(random_model("tied"), folder, max_shard_bytes=20_000)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    assert f"has no {gone.name}" in refused(folder)


def test_only_headers_are_read_to_check(written, monkeypatch):
    folder, _ = written
    monkeypatch.setattr(
        "nanigpt.models.huggingface.views.Stored.read", lambda *_: pytest.fail("read a tensor")
    )
    Pretrained(folder, build(tiny_llama("tied")))
    assert "model.norm.weight" in Folder(folder).names


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    model = random_model("gqa")
    model.layers[1].attention_norm.eps = 1e-6
    with pytest.raises(UsageError, match=r"llama: layers differ in norm.eps \(1e-05, 1e-06\)"):
        save_pretrained(model, tmp_path / "out")
    model = random_model("gqa")
    model.layers[1].extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match=r"llama has no layers.1.extra"):
        save_pretrained(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanigpt.models.huggingface.writer._write", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        save_pretrained(random_model("gqa"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        save_pretrained(random_model("gqa"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_every_argument_of_the_modules_is_accounted_for():
    """A new argument can make another model of the same parameters: fields() must tell it, or
    refuse it, before it is added here."""

    def arguments(kind):
        return set(inspect.signature(kind).parameters)

    linear = {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}
    blocks = {"attention_norm", "attention", "feed_forward_norm", "feed_forward"}
    # `core` and recomputation are ways to compute the same.
    assert arguments(Decoder) == {"embedding", "layers", "norm", "head"}
    assert arguments(TransformerBlock) == {*blocks, "activation_checkpointing"}
    assert arguments(Attention) - linear == {"n_heads", "n_kv_heads", "head_dim", "rope", "core"}
    assert arguments(FeedForward) <= linear
    assert arguments(RotaryEmbedding) == {"head_dim", "max_sequence_length", "theta", "scaling"}

"""DeepSeek-V3's config.json in all its forms, what it cannot tell, published FP8, and what predicts
further tokens."""

import copy
import json

import fiddle as fdl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.huggingface.deepseek_v3 import DEEPSEEK_V3
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.mapping import left_out
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.init import Constant
from tests.models.huggingface import random_model, state, tiny_model
from tests.models.test_huggingface_config import replaced, version_5, without

BLOCK = (16, 12)  # rows and columns that share a scale


def yarn(**arguments):
    kept = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
    return replaced(rope_scaling={**kept, **arguments})


def fields(shape):
    return DEEPSEEK_V3.fields(build(tiny_model("deepseek_v3", shape)))


@pytest.mark.parametrize(
    "shape, change",
    [
        ("groups", version_5),
        ("biased", version_5),
        ("whole_queries", version_5),
        ("groups", yarn(mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1)),
        ("groups", without("qk_head_dim", "rope_interleave", "moe_layer_freq", "scoring_func")),
        ("groups", without("attention_bias", "num_key_value_heads", "topk_method")),
        ("groups", replaced(num_nextn_predict_layers=1, head_dim=8, max_position_embeddings=9)),
        ("groups", lambda c: without("n_routed_experts")({**c, "num_local_experts": 8})),
        ("biased", replaced(intermediate_size=7)),
    ],
)
def test_each_form_of_config_json_is_understood(shape, change):
    known = fields(shape)
    told = change(copy.deepcopy(known))
    assert told != known
    assert not differences(known, DEEPSEEK_V3.normalized(told))


@pytest.mark.parametrize(
    "shape, change, told",
    [
        ("groups", yarn(mscale=1.0), "'mscale_all_dim': 0.0"),
        ("groups", yarn(mscale=2.0, mscale_all_dim=1.0), "'attention_factor': 1.1"),
        ("groups", yarn(mscale_all_dim=1.0), "'attention_factor': 1.1"),
        ("groups", replaced(rope_scaling=None), "has rope_scaling=None, expected {"),
        ("groups", replaced(rope_interleave=False), "has rope_interleave=False, expected True"),
        ("groups", replaced(scoring_func="softmax"), "has scoring_func='softmax'"),
        ("groups", replaced(topk_method="greedy"), "has topk_method='greedy'"),
        ("groups", replaced(moe_layer_freq=2), "has moe_layer_freq=2"),
        ("groups", without("n_group"), "has n_group=8, expected 4"),
        ("groups", replaced(topk_group=1), "has topk_group=1, expected 2"),
        ("groups", replaced(n_shared_experts=2), "has n_shared_experts=2, expected 1"),
        ("groups", without("first_k_dense_replace"), "has first_k_dense_replace=3, expected 1"),
        ("groups", replaced(routed_scaling_factor=1.0), "has routed_scaling_factor=1.0"),
        ("groups", replaced(norm_topk_prob=False), "has norm_topk_prob=False, expected True"),
        ("groups", replaced(q_lora_rank=None), "has q_lora_rank=None, expected 24"),
        ("groups", replaced(qk_nope_head_dim=13), "has qk_nope_head_dim=13, expected 12"),
        ("groups", replaced(v_head_dim=9), "has v_head_dim=9, expected 10"),
        ("groups", replaced(num_key_value_heads=2), "has num_key_value_heads=2, expected 4"),
        ("whole_queries", without("q_lora_rank"), "has q_lora_rank=1536, expected None"),
        ("biased", without("attention_bias"), "has attention_bias=False, expected True"),
    ],
)
def test_another_model_in_config_json_is_told(shape, change, told):
    known = fields(shape)
    found = differences(known, DEEPSEEK_V3.normalized(change(copy.deepcopy(known))))
    assert any(told in line for line in found), found


def zero():
    return fdl.Config(Constant, value=0.0)


def plain_experts(dim=24):
    return nodes.feed_forward(dim=dim, hidden_dim=40, output_scale=1.0)


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("attention.window", 8, "layers[2].attention.window is 8: expected None"),
        ("attention.chunk", 8, "layers[2].attention.chunk is 8: expected None"),
        ("attention.kv_norm.eps", 1e-5, "layers[2].attention.kv_norm.eps is 1e-05: expected 1e-06"),
        ("attention.kv_norm.initializer", None, "a norm has no gain: expected one"),
        ("attention_norm.initializer", None, "a norm has no gain: expected one"),
        ("attention.wq.bias", zero(), "layers[2].attention has a bias of all heads' queries"),
        ("attention.wo.bias", zero(), "layers differ in attention biases (False, True)"),
        ("attention_norm.eps", 1e-5, "layers differ in norm.eps (1e-06, 1e-05)"),
        ("feed_forward.router.scores", "softmax", "router.scores is 'softmax': expected 'sigmoid'"),
        ("feed_forward.router.balance_rate", None, "router.balance_rate is None: expected one"),
        ("feed_forward.router.bias", zero(), "has no layers.2.feed_forward.router.bias"),
        ("feed_forward.experts.bias", zero(), "has no layers.2.feed_forward.experts.bias1"),
        ("feed_forward.experts.weighs", "inputs", "experts.weighs is 'inputs': expected 'outputs'"),
        (
            "feed_forward.experts.activation",
            fdl.Config(ClampedSwiGLU),
            "layers have ClampedSwiGLU: expected SwiGLU",
        ),
        ("feed_forward.shared", None, "a mixture has no shared expert: expected one"),
        ("feed_forward.shared", plain_experts(), "shared experts are 40 wide: expected a multiple"),
        ("feed_forward.shared.w1.bias", zero(), "has no layers.2.feed_forward.shared.w1.bias"),
        ("feed_forward", plain_experts(), "no layer has a mixture of experts"),
    ],
)
def test_what_no_config_json_can_say_is_refused(path, value, told):
    cfg = tiny_model("deepseek_v3", "whole_queries")
    *parents, name = path.split(".")
    node = cfg.layers[2]
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, name, value)
    with pytest.raises(UsageError) as caught:
        family_of(build(cfg))
    lines = str(caught.value).splitlines()
    [line] = [line for line in lines if line.startswith("  - deepseek_v3")]
    assert told in line


def test_a_dense_layer_behind_a_mixture_is_refused():
    cfg = tiny_model("deepseek_v3", "groups")
    cfg.layers[2].feed_forward = cfg.layers[0].feed_forward
    with pytest.raises(UsageError, match=r"layers \[0, 2\] are dense: expected the first ones"):
        family_of(build(cfg))


def quantized(weight, generator):
    """Values in FP8, their scales, and what they come to."""
    rows, columns = (-(-n // size) for n, size in zip(weight.shape, BLOCK, strict=True))
    values = torch.randn(weight.shape, generator=generator).to(torch.float8_e4m3fn)
    scales = 0.1 * torch.rand(rows, columns, generator=generator)
    whole = scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
    return values, scales, values.float() * whole[: weight.shape[0], : weight.shape[1]]


def further_layer(tensors, name):
    """Tensors of a layer that predicts a further token, as published."""
    block = {n: t for n, t in tensors.items() if n.startswith("model.layers.2.")}
    block = {n.replace("layers.2.", f"layers.{name}."): t.clone() for n, t in block.items()}
    dim = tensors["model.norm.weight"].shape[0]
    stem = f"model.layers.{name}"
    return block | {
        f"{stem}.eh_proj.weight": torch.ones(dim, 2 * dim),
        **{f"{stem}.{n}.weight": torch.ones(dim) for n in ("enorm", "hnorm", "shared_head.norm")},
        f"{stem}.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        f"{stem}.shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def published(tmp_path):
    """A folder with FP8 and a further layer, and one of the same weights as they are."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    plain, folder = tmp_path / "plain", tmp_path / "fp8"
    for path in (plain, folder):
        save_pretrained(random_model("deepseek_v3", "groups", seed=4), path)
    tensors = load_file(plain / "model.safetensors")
    stored, expected = dict(tensors), dict(tensors)
    stored |= further_layer(tensors, 3)
    generator, checked = torch.Generator().manual_seed(5), 0
    for name in list(stored):
        if "_proj" in name and name.endswith("weight"):
            values, scales, whole = quantized(stored[name], generator)
            stored |= {name: values, f"{name}_scale_inv": scales}
            if name in expected:
                expected[name] = whole
            if all(n % size == 0 for n, size in zip(values.shape, BLOCK, strict=True)):
                theirs = Fp8Dequantize(None)._dequantize_one(values, scales)
                assert torch.equal(theirs, whole)
                checked += 1
    assert checked > 3
    save_file(expected, plain / "model.safetensors")
    save_file(stored, folder / "model.safetensors")
    told = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
    told["weight_block_size"] = list(BLOCK)
    change_config(folder, quantization_config=told, num_nextn_predict_layers=1)
    return folder, plain


def spoil(folder, **tensors):
    file = folder / "model.safetensors"
    kept = {**load_file(file), **tensors}
    save_file({n: t for n, t in kept.items() if t is not None}, file)


def refused(folder):
    with pytest.raises(UsageError) as caught:
        Pretrained(folder, build(tiny_model("deepseek_v3", "groups")))
    return str(caught.value)


def test_fp8_is_read(published):
    folder, plain = published
    model, other = (random_model("deepseek_v3", "groups", seed=n) for n in (1, 2))
    Pretrained(folder, model).load(model)
    Pretrained(plain, other).load(other)
    expected = state(other)
    for name, weight in state(model).items():
        assert torch.equal(weight, expected[name]), name


Q_PROJ = "model.layers.1.self_attn.q_b_proj.weight"


@pytest.mark.parametrize(
    "tensors, told",
    [
        (
            {f"{Q_PROJ}_scale_inv": None},
            f"\n  - {Q_PROJ} has dtype F8_E4M3, expected one of F64, F32, F16, BF16",
        ),
        (
            {f"{Q_PROJ}_scale_inv": torch.ones(5, 3)},
            f": {Q_PROJ}: [80, 24] with scales [5, 3]: expected a matrix, and one scale for each "
            "block of [16, 12]",
        ),
        (
            {f"{Q_PROJ}_scale_inv": torch.ones(5, 2, dtype=torch.int32)},
            f"\n  - {Q_PROJ}_scale_inv has dtype I32, expected one of F64, F32, F16, BF16",
        ),
        (
            {Q_PROJ: torch.ones(80, 24)},
            f"\n  - {Q_PROJ} has dtype F32, expected F8_E4M3",
        ),
        (
            {Q_PROJ: None},
            f"\n  - missing {Q_PROJ} [80, 24], for layers.1.attention.wq_b.weight"
            f"\n  - unexpected {Q_PROJ}_scale_inv [5, 2]",
        ),
    ],
)
def test_fp8_that_does_not_fit_is_told(published, tensors, told):
    folder, _ = published
    spoil(folder, **tensors)
    assert refused(folder).endswith(told)


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"},
    ],
)
def test_another_quantisation_is_refused(published, told):
    folder, _ = published
    change_config(folder, quantization_config=told)
    assert "config.json: quantization_config with" in refused(folder)


def test_further_layers_are_passed_over_as_config_json_counts_them(published):
    """transformers has one where config.json does not say how many."""
    _, folder = published
    tensors = load_file(folder / "model.safetensors")
    spoil(folder, **further_layer(tensors, 3))
    assert "unexpected model.layers.3.eh_proj.weight [32, 64]" in refused(folder)
    change_config(folder, num_nextn_predict_layers=1)
    Pretrained(folder, build(tiny_model("deepseek_v3", "groups")))
    change_config(folder, num_nextn_predict_layers=None)
    Pretrained(folder, build(tiny_model("deepseek_v3", "groups")))
    spoil(folder, **{"model.layers.4.enorm.weight": torch.ones(32)})
    assert refused(folder).endswith("1 problem:\n  - unexpected model.layers.4.enorm.weight [32]")


def with_multi_token(model, seed=0):
    """What a module that predicts further tokens may have: weights of its own, and the model's."""
    torch.manual_seed(seed)
    depth = nn.ModuleDict({"projection": nn.Linear(64, 32), "embedding": model.embedding})
    model.multi_token = nn.ModuleDict({"depths": nn.ModuleList([depth])})
    return model


def test_what_predicts_further_tokens_stays_out_of_files(tmp_path):
    shape = ("deepseek_v3", "groups")
    model = with_multi_token(random_model(*shape), seed=1)
    assert left_out(model) == [
        f"multi_token.depths.0.{name}"
        for name in ("projection.weight", "projection.bias", "embedding.weight")
    ]
    save_pretrained(model, tmp_path / "with")
    save_pretrained(random_model(*shape), tmp_path / "without")
    for file in (tmp_path / "without").iterdir():
        assert file.read_bytes() == (tmp_path / "with" / file.name).read_bytes()
    other = with_multi_token(random_model(*shape, seed=2), seed=3)
    projection = other.multi_token["depths"][0]["projection"].weight
    before = projection.detach().clone()
    Pretrained(tmp_path / "with", other).load(other)
    assert torch.equal(projection, before)
    expected = state(model)
    assert all(torch.equal(weight, expected[name]) for name, weight in state(other).items())
    assert torch.equal(other.multi_token["depths"][0]["embedding"].weight, model.embedding.weight)

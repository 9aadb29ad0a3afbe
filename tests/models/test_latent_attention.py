"""Latent attention against transformers' DeepseekV3Attention, and its cache of latents."""

import itertools

import fiddle as fdl
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from nanigpt.config.check.build import build
from nanigpt.experiments import nodes
from nanigpt.experiments.deepseek import deepseek_v3_model
from nanigpt.models.attention_core import Eager, FlexAttention, ScaledDotProduct
from nanigpt.models.generate import generate
from nanigpt.models.huggingface.mapping import RotaryPairs
from nanigpt.models.init import Constant, TruncatedNormal, initialize, materialize
from nanigpt.models.rope import RotaryEmbedding, YarnScaling
from nanigpt.models.visibility import Places, Visibility

LENGTH, ORIGINAL = 40, 16  # positions, and those that YaRN begins from
DIM, N_HEADS, Q_RANK, KV_RANK, NOPE, ROPE, VALUE = 32, 4, 24, 20, 12, 8, 10
SIZES = {
    "hidden_size": DIM,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_HEADS,
    "kv_lora_rank": KV_RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE,
}
NAMES = {
    "wq": "q_proj",
    "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
    "wo": "o_proj",
}
QUERIES = RotaryPairs("qk_head_dim", "qk_rope_head_dim")
REORDERED = {"wq": QUERIES, "wq_b": QUERIES, "wkv_a": RotaryPairs(None, "qk_rope_head_dim")}

YARN = {"factor": 4.0, "original_max_positions": ORIGINAL, "beta_fast": 4.0}
# Ours and transformers' further arguments: DeepSeek-V3's, and those of scores and of what is rotated
# apart from each other.
SCALINGS = {
    "plain": None,
    "yarn": ({}, {}),
    "v3": ({"mscale_all_dim": 1.0}, {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "apart": (
        {"mscale_all_dim": 3.0, "attention_factor": 1.25},
        {"mscale_all_dim": 3.0, "attention_factor": 1.25},
    ),
}

# Of mixtures, which dense layers do not have.
NO_EXPERTS = {"expert_dim": 1, "n_experts": 1, "top_k": 1, "n_shared": 1}


def attention_config(*, q_lora_rank=Q_RANK, scaling="v3", bias=False, **arguments):
    rope = fdl.Config(
        RotaryEmbedding, head_dim=ROPE, max_sequence_length=4 * ORIGINAL, theta=10_000.0
    )
    if SCALINGS[scaling] is not None:
        rope.scaling = fdl.Config(YarnScaling, **YARN, **SCALINGS[scaling][0])
    cfg = nodes.latent_attention(
        dim=DIM,
        n_heads=N_HEADS,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=KV_RANK,
        nope_head_dim=NOPE,
        v_head_dim=VALUE,
        rope=rope,
        output_scale=1.0,
        init_scale=2.0,
        **arguments,
    )
    for name in ("wq_a", "wkv_a", "wo") if bias else ():
        getattr(cfg, name).bias = fdl.Config(TruncatedNormal, std=0.5)
    return cfg


def with_weights(cfg):
    """None of them, gains included, is as it starts."""
    module = build(cfg)
    materialize(module, "cpu")
    initialize(module, seed=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def built(**arguments):
    return with_weights(attention_config(**arguments))


def inputs(batch=2, length=LENGTH):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(0))


def transformers_config(*, q_lora_rank, scaling, bias):
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    if SCALINGS[scaling] is not None:
        rope |= {"rope_type": "yarn", "factor": YARN["factor"], "beta_fast": YARN["beta_fast"]}
        rope |= {"original_max_position_embeddings": ORIGINAL, **SCALINGS[scaling][1]}
    return deepseek.DeepseekV3Config(
        **SIZES,
        q_lora_rank=q_lora_rank,
        max_position_embeddings=4 * ORIGINAL,
        rope_parameters=rope,
        attention_bias=bias,
        attn_implementation="eager",
    )


def in_their_order(name, x):
    """Rows of one of our parameters as theirs are, whose RoPE pairs are neighbours."""
    pairs = REORDERED.get(name.split(".")[0])
    if pairs is None:
        return x
    return x[pairs.order(len(x), {"qk_head_dim": NOPE + ROPE, "qk_rope_head_dim": ROPE}).argsort()]


def causal_bias():
    mask = Visibility().sees(torch.arange(LENGTH)[:, None], torch.arange(LENGTH))
    return torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~mask, -torch.inf)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("q_lora_rank, bias", [(None, False), (Q_RANK, False), (Q_RANK, True)])
def test_outputs_and_gradients_equal_those_of_transformers(q_lora_rank, scaling, bias):
    arguments = {"q_lora_rank": q_lora_rank, "scaling": scaling, "bias": bias}
    ours, config = built(**arguments), transformers_config(**arguments)
    theirs = deepseek.DeepseekV3Attention(config, layer_idx=0)

    def their_name(name):
        module, parameter = name.split(".")
        return f"{NAMES[module]}.{parameter}"

    weights = {their_name(n): in_their_order(n, p.detach()) for n, p in ours.named_parameters()}
    theirs.load_state_dict(weights)
    x = inputs()
    tables = deepseek.DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    out = ours(x)
    expected = theirs(x, position_embeddings=tables, attention_mask=causal_bias())[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for y in (out, expected):
        y.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert p.grad.abs().max() > 1e-4, f"{name} has next to no gradient"
        got = in_their_order(name, p.grad)
        torch.testing.assert_close(got, gradients[their_name(name)], atol=1e-5, rtol=1e-5)


def test_each_scaling_gives_other_outputs():
    outs = [built(scaling=scaling)(inputs()) for scaling in SCALINGS]
    for i, a in enumerate(outs):
        assert not any(torch.allclose(a, b, atol=1e-3) for b in outs[:i])


def test_published_sizes_have_the_parameters_of_transformers():
    cfg = deepseek_v3_model(
        dim=7168,
        n_layers=1,
        n_dense_layers=1,
        n_heads=128,
        hidden_dim=18_432,
        yarn_factor=40.0,
        **NO_EXPERTS,
    )
    ours = build(cfg).layers[0].attention
    with torch.device("meta"):
        theirs = deepseek.DeepseekV3Attention(deepseek.DeepseekV3Config(), layer_idx=0)
    shapes = {NAMES[n.split(".")[0]] + ".weight": p.shape for n, p in ours.named_parameters()}
    assert shapes == {name: p.shape for name, p in theirs.named_parameters()}
    assert ours.rope.scaling.attention_factor == 1.0
    assert ours.qk_head_dim**-0.5 * ours.rope.score_factor == pytest.approx(0.1352337788608801)


PLACES = {
    "plain": None,
    "documents": Places(
        torch.arange(LENGTH).expand(2, -1), torch.arange(2 * LENGTH).view(2, -1) // 13
    ),
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("arguments", [{}, {"window": 7}, {"chunk": 9}], ids=str)
def test_cores_agree(arguments, places):
    outs, gradients = [], []
    for core in (Eager, ScaledDotProduct, FlexAttention):
        attention = built(core=fdl.Config(core), **arguments)
        with torch.set_grad_enabled(core is not FlexAttention):  # no backward pass on a CPU
            out = attention(inputs(), places=PLACES[places])
        outs.append(out.detach())
        if core is not FlexAttention:
            out.square().mean().backward()
            gradients.append([p.grad for p in attention.parameters()])
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=1e-5, rtol=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_documents_have_what_they_have_alone():
    """But for RoPE, whose scores depend on differences of positions only."""
    attention, x, ends = built(), inputs(batch=1), [0, 5, 6, 29, LENGTH]
    documents = torch.bucketize(torch.arange(LENGTH), torch.tensor(ends), right=True)[None]
    with torch.no_grad():
        packed = attention(x, places=Places(torch.arange(LENGTH)[None], documents))
        alone = [attention(x[:, a:b]) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-5, rtol=1e-5)


def test_windows_and_chunks_have_what_they_have_alone():
    x = inputs()
    with torch.no_grad():
        window, chunk = built(window=7)(x), built(chunk=9)(x)
        for i in (6, 7, 23, LENGTH - 1):
            last = built()(x[:, i - 6 : i + 1])[:, -1]
            torch.testing.assert_close(window[:, i], last, atol=1e-5, rtol=1e-5)
        alone = torch.cat([built()(piece) for piece in x.split(9, 1)], 1)
    torch.testing.assert_close(chunk, alone, atol=1e-5, rtol=1e-5)


def tiny_decoder(**edits):
    cfg = deepseek_v3_model(
        dim=DIM,
        n_layers=2,
        n_dense_layers=2,
        n_heads=N_HEADS,
        hidden_dim=48,
        q_lora_rank=Q_RANK,
        kv_lora_rank=KV_RANK,
        nope_head_dim=NOPE,
        rope_head_dim=ROPE,
        v_head_dim=VALUE,
        vocab_size=97,
        sequence_length=4 * ORIGINAL,
        yarn_factor=4.0,
        original_max_positions=ORIGINAL,
        compute_dtype=torch.float32,
        **NO_EXPERTS,
    )
    for layer in cfg.layers:
        for name, value in edits.items():
            setattr(layer.attention, name, value)
    cfg.embedding.initializer.std = 1.0
    cfg.head.initializer.scale = 4.0
    return with_weights(cfg)


@pytest.mark.parametrize("edits", [{}, {"window": 6}, {"chunk": 9}], ids=str)
def test_decoding_from_latents_equals_decoding_without_a_cache(edits):
    model = tiny_decoder(**edits)
    tokens = torch.randint(97, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        caches = model.new_caches(capacity=LENGTH)
        ends = [0, 7, 8, 9, 20, LENGTH]
        pieces = [model(tokens[:, a:b], caches) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
    arguments = {"max_new_tokens": 50, "temperature": 0}
    cached = list(generate(model, [5, 90, 17], **arguments))
    assert cached == list(generate(model, [5, 90, 17], use_cache=False, **arguments))
    assert len(set(cached)) > 3


def test_the_cache_has_a_latent_and_one_key_of_each_position():
    model = tiny_decoder()
    caches = model.new_caches(capacity=30)
    with torch.no_grad():
        for n in (4, 1, 2):
            model(torch.zeros(3, n, dtype=torch.int64), caches)
    for cache in caches:
        assert cache.length == 7
        assert sum(x.nbytes for x in cache.kept) == 3 * 30 * (KV_RANK + ROPE) * 4
    with pytest.raises(ValueError, match="31 positions in a cache for 30"):
        model(torch.zeros(3, 24, dtype=torch.int64), caches)


def test_flops_are_those_that_the_counter_finds():
    model = tiny_decoder()
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    assert counter.get_total_flops() == tokens.numel() * model.flops_per_token(LENGTH)
    scores = 6 * N_HEADS * (NOPE + ROPE + VALUE) * LENGTH
    assert model.layers[0].attention.score_flops(LENGTH) == scores


def wrong(node, name, value):
    cfg = attention_config()
    setattr(getattr(cfg, node) if node else cfg, name, value)
    return cfg


@pytest.mark.parametrize(
    "cfg, message",
    [
        (wrong("", "n_heads", 0), "n_heads=0"),
        (
            wrong("", "wq", nodes.linear(DIM, 80)),
            "wq alone, or wq_a, q_norm and wq_b, not wq, wq_a, q_norm, wq_b",
        ),
        (wrong("", "q_norm", None), "made by wq alone, or .*, not wq_a, wq_b"),
        (wrong("wq_b", "out_dim", 72), "wq_b.out_dim=72: expected 80"),
        (wrong("wq_b", "in_dim", 8), "wq_b.in_dim=8: expected 24"),
        (wrong("q_norm", "dim", 8), "q_norm.dim=8: expected 24"),
        (wrong("kv_norm", "dim", 8), "kv_norm.dim=8: expected 20"),
        (wrong("wkv_a", "out_dim", 20), "wkv_a.out_dim=20: expected 28"),
        (wrong("wkv_a", "in_dim", 8), "wkv_a.in_dim=8: expected 32"),
        (wrong("wkv_b", "out_dim", 80), "wkv_b.out_dim=80: expected 88"),
        (wrong("wkv_b", "bias", fdl.Config(Constant, value=0.0)), "wkv_b.bias: expected None"),
        (wrong("wo", "in_dim", 80), "wo.in_dim=80: expected 40"),
        (wrong("", "window", 0), "window=0: expected at least 1 position"),
    ],
)
def test_what_does_not_fit_is_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(cfg)

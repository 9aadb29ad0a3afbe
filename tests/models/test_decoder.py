"""The decoder against transformers' LlamaForCausalLM."""

import pytest
import torch
import transformers

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.experiments.llama3 import llama3_model
from nanigpt.models.init import initialize, materialize

NAMES = {
    "embedding.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def published_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        if ours.endswith("."):
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        else:
            name = name.replace(f"{ours}.", f"{theirs}.")
    return name


def model_pair(*, tied: bool, n_kv_heads: int, factor: float | None):
    cfg = llama3_model(
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=56,
        vocab_size=97,
        n_kv_heads=n_kv_heads,
        sequence_length=256,
        rope_scaling_factor=factor,
        tied=tied,
        compute_dtype=torch.float32,
    )
    ours = build(cfg)
    materialize(ours, "cpu")
    initialize(ours, seed=1)
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    if factor is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=n_kv_heads,
            intermediate_size=56,
            vocab_size=97,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_parameters=rope,
            tie_word_embeddings=tied,
        )
    )
    weights = {published_name(name): p for name, p in ours.named_parameters()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if tied else set())
    theirs.tie_weights()
    return ours, theirs


@pytest.mark.parametrize(
    "tied, n_kv_heads, factor", [(False, 4, None), (False, 2, 8.0), (True, 1, 32.0)]
)
def test_logits_and_gradients_equal_those_of_transformers(tied, n_kv_heads, factor):
    ours, theirs = model_pair(tied=tied, n_kv_heads=n_kv_heads, factor=factor)
    tokens = torch.randint(97, (2, 200), generator=torch.Generator().manual_seed(0))
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(our_logits, their_logits, atol=1e-5, rtol=1e-5)

    our_logits.square().mean().backward()
    their_logits.square().mean().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, their_gradients[published_name(name)], atol=1e-5, rtol=1e-4
        )
        compared += 1
    assert compared == len(their_gradients)


def test_bf16_compute_keeps_fp32_weights_and_gradients():
    cfg = llama3_model(
        dim=32, n_layers=1, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=50, sequence_length=8
    )
    model = build(cfg)
    materialize(model, "cpu")
    initialize(model, seed=0)
    logits = model(torch.arange(8)[None])
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "path, value, named",
    [
        ("layers[1].attention.wk.out_dim", 24, "layers[1].attention.wk.out_dim=24: expected 16"),
        (
            "layers[0].feed_forward.w2.in_dim",
            60,
            "layers[0].feed_forward.w2.in_dim=60: expected 64",
        ),
        ("norm.dim", 16, "norm.dim=16: expected 32"),
        ("head.out_dim", 51, "head.out_dim=51: expected 50"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(path, value, named):
    from nanigpt.config.compose.overrides import apply_override

    cfg = llama3_model(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=50, sequence_length=8
    )
    apply_override(cfg, f"{path}={value}")
    with pytest.raises(UsageError, match=named.replace("[", r"\[").replace("]", r"\]")):
        build(cfg)

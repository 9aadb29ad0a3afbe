"""Qwen3 against transformers' Qwen3ForCausalLM."""

import pytest
import torch
import transformers

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.experiments.qwen3 import qwen3_model
from nanigpt.models.init import initialize, materialize
from tests.models.test_decoder import published_name

NAMES = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}

# Of config.json on the Hugging Face hub, Qwen/Qwen3-*-Base; the rest is the same for all.
PUBLISHED = {
    "qwen3_0_6b": (1024, 3072, 28, 16, True),
    "qwen3_1_7b": (2048, 6144, 28, 16, True),
    "qwen3_4b": (2560, 9728, 36, 32, True),
    "qwen3_8b": (4096, 12_288, 36, 32, False),
    "qwen3_14b": (5120, 17_408, 40, 40, False),
    "qwen3_32b": (5120, 25_600, 64, 64, False),
}

# dim, heads, KV heads, head_dim, hidden_dim, layers, tied
SHAPES = [(32, 4, 2, 16, 56, 3, True), (48, 6, 1, 8, 40, 2, False), (24, 3, 3, 10, 72, 4, True)]


def theirs_name(name):
    name = published_name(name)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def config(dim, hidden_dim, n_layers, n_heads, tied, **others):
    return transformers.Qwen3Config(
        **{
            "hidden_size": dim,
            "intermediate_size": hidden_dim,
            "num_hidden_layers": n_layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": tied,
            "attention_bias": False,
            **others,
        }
    )


def random_pair(shape, edit=lambda cfg: None, **others):
    """Both models with the same weights, of which none, gains included, is as it starts."""
    dim, n_heads, n_kv_heads, head_dim, hidden_dim, n_layers, tied = shape
    cfg = qwen3_model(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_dim=hidden_dim,
        vocab_size=97,
        sequence_length=256,
        tied=tied,
        compute_dtype=torch.float32,
    )
    edit(cfg)
    ours = build(cfg)
    materialize(ours, "cpu")
    initialize(ours, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    sizes = {"num_key_value_heads": n_kv_heads, "head_dim": head_dim, "vocab_size": 97}
    theirs = transformers.Qwen3ForCausalLM(
        config(dim, hidden_dim, n_layers, n_heads, tied, **sizes, **others)
    )
    weights = {theirs_name(name): p for name, p in ours.named_parameters()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if tied else set())
    theirs.tie_weights()
    return ours, theirs


def assert_equal(ours, theirs):
    tokens = torch.randint(97, (2, 150), generator=torch.Generator().manual_seed(0))
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(our_logits, their_logits, atol=1e-5, rtol=1e-5)
    labels = tokens.roll(-1, 1).flatten()
    for logits in (our_logits, their_logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels).backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    names = [theirs_name(name) for name, _ in ours.named_parameters()]
    assert set(names) == set(their_gradients)
    for name, p in zip(names, ours.parameters(), strict=True):
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(p.grad, their_gradients[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_those_of_transformers(shape):
    assert_equal(*random_pair(shape))


def test_sliding_windows_equal_those_of_transformers():
    def edit(cfg):
        for layer in cfg.layers[1:]:
            layer.attention.window = 20

    window = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    assert_equal(*random_pair(SHAPES[0], edit, attn_implementation="eager", **window))


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_equals_that_of_transformers(truncate):
    import fiddle as fdl

    from nanigpt.models.rope import YarnScaling

    def edit(cfg):
        cfg.layers[0].attention.rope.scaling = fdl.Config(
            YarnScaling, factor=4.0, original_max_positions=64, truncate=truncate
        )

    rope = {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": truncate,
    }
    assert_equal(*random_pair(SHAPES[0], edit, rope_parameters=rope))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_parameter_count_is_that_of_the_published_model(recipe):
    with torch.device("meta"):
        theirs = transformers.Qwen3ForCausalLM(config(*PUBLISHED[recipe]))
    ours = build(compose([f"config:{recipe}"])).model
    shapes = {theirs_name(name): p.shape for name, p in ours.named_parameters()}
    assert shapes == {name: p.shape for name, p in theirs.named_parameters()}
    assert ours.n_parameters() == sum(p.numel() for p in theirs.parameters())
    attention = ours.layers[0].attention
    assert attention.rope.theta == 1e6 and attention.q_norm.eps == ours.norm.eps == 1e-6

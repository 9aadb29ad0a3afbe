"""Sampling, with and without the cache."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.compose.flag import compose
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.generate import generate
from nanigpt.models.init import Constant
from tests.support import built_model, tiny


def layers(**arguments):
    """Edits of the two layers' attention."""

    def edit(cfg):
        for layer in cfg.model.layers:
            for name, value in arguments.items():
                setattr(layer.attention, name, value)

    return edit


def sinks(cfg):
    for layer in cfg.model.layers:
        initializer = fdl.Config(Constant, value=3.0)
        n_heads = layer.attention.n_heads
        layer.attention.sink = fdl.Config(AttentionSink, n_heads=n_heads, initializer=initializer)


def positions_by_attention(cfg):
    """One layer with RoPE in chunks, one without, as in Llama 4."""
    first, second = (layer.attention for layer in cfg.model.layers)
    first.chunk = 9
    second.rope = None
    second.temperature = fdl.Config(AttentionTemperature, scale=2.0, floor_scale=4)


KINDS = {
    "llama3_debug": [],
    "qwen3_debug": [],
    "qwen3_moe_debug": [],
    "deepseek_v3_debug": [],
    "llama4_debug": [],
    "gpt_oss_debug": [],
    "window": [layers(window=6)],
    "chunk": [layers(chunk=9)],
    "sink": [sinks, layers(window=6)],
    "llama4": [positions_by_attention],
}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    if request.param in ("llama4_debug", "gpt_oss_debug"):  # whole, for all kinds of layers
        cfg = compose([f"config:{request.param}", "tag:SequenceLength=64", "tag:VocabSize=512"])
    else:
        cfg = tiny(recipe=request.param if request.param.endswith("debug") else "llama3_debug")
    for edit in KINDS[request.param]:
        edit(cfg)
    model = built_model(cfg)
    # Larger weights than a fresh model's, so that attention matters to what is chosen.
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4.0)
    return model


@pytest.mark.parametrize("kind", ["window", "chunk", "sink", "llama4"])
def test_each_kind_of_attention_matters_to_the_logits(kind):
    cfg = tiny()
    plain = built_model(cfg)
    for edit in KINDS[kind]:
        edit(cfg)
    tokens = torch.randint(512, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(plain(tokens), built_model(cfg)(tokens), atol=1e-3)


def test_greedy_decoding_with_the_cache_equals_decoding_without(model):
    prompt = [5, 90, 17, 200]
    kwargs = {"max_new_tokens": 50, "temperature": 0}
    cached = list(generate(model, prompt, **kwargs))
    assert cached == list(generate(model, prompt, use_cache=False, **kwargs))
    assert len(cached) == 50
    assert len(set(cached)) > 3
    # Each token is the likeliest after all before it, by one plain forward pass.
    tokens = torch.tensor([prompt + cached])
    with torch.no_grad():
        choices = model(tokens)[0].argmax(-1).tolist()
    assert cached == choices[len(prompt) - 1 : -1]


def test_tokens_may_enter_the_cache_in_pieces(model):
    tokens = torch.randint(512, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        caches = model.new_caches(capacity=20)
        pieces = [model(tokens[:, a:b], caches) for a, b in [(0, 7), (7, 8), (8, 15), (15, 20)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_sampling_follows_seed_temperature_and_top_k(model):
    def sample(**kwargs):
        return list(generate(model, [1, 2, 3], max_new_tokens=30, **kwargs))

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    assert sample(top_k=1, seed=1) == sample(temperature=0)
    assert sample(temperature=1e-4, seed=3) == sample(temperature=0)
    assert sample(temperature=1e-46, seed=3) == sample(temperature=0)  # 0 in float32
    assert all(token < 7 for token in sample(n_tokens=7, seed=1))


def test_the_stop_token_ends_the_text(model):
    tokens = list(generate(model, [9], max_new_tokens=20, temperature=0))
    stop = tokens[5]
    stopped = list(generate(model, [9], max_new_tokens=20, temperature=0, stop_id=stop))
    assert stopped == tokens[: tokens.index(stop)]


@pytest.mark.parametrize(
    "prompt, kwargs, message",
    [
        ([], {}, r"prompt=\[\]: expected at least one token"),
        (
            [1],
            {"max_new_tokens": 64},
            "max_new_tokens=64: expected at most 63 after .* context of 64",
        ),
        ([1], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([1], {"temperature": -1.0}, "temperature=-1.0"),
        ([1], {"top_k": 0}, "top_k=0"),
    ],
)
def test_wrong_arguments_are_refused(model, prompt, kwargs, message):
    with pytest.raises(ValueError, match=message):
        list(generate(model, prompt, **{"max_new_tokens": 5, **kwargs}))

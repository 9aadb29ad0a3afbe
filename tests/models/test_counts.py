"""What a model says that it costs, against what its computation and its tensors come to."""

import time

import fiddle as fdl
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.models.attention_extras import AttentionSink
from nanigpt.models.generate import generate
from nanigpt.models.init import Constant
from tests.support import built_model, tiny

EAGER = "tag:AttentionCore=@eager_attention()"
LENGTH = 64
DEBUG = [name for name in recipes() if name.endswith("_debug")]  # one of each family


def flops(model, *, batch_size=2):
    """FLOPs per token of a forward and a backward pass, as PyTorch counts them.

    It counts matrix products only, two for a multiply-add, and those of fused attention by formulas
    that leave out what a causal mask hides: hence the math path.
    """
    tokens = torch.randint(512, (batch_size, LENGTH), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    return counter.get_total_flops() / tokens.numel()


def test_flops_by_hand():
    model = build(compose(["config:llama3_debug"])).model
    products = 6 * (4 * 256 * 256 + 3 * 256 * 768) + 256 * 2048
    assert model.flops_per_token(256) == 6 * products + 12 * 6 * 256 * 256


@pytest.mark.parametrize("recipe", DEBUG)
def test_flops_of_every_family(recipe):
    model = built_model(tiny(EAGER, recipe=recipe))
    assert flops(model) == pytest.approx(model.flops_per_token(LENGTH), rel=1e-3)


@pytest.mark.parametrize(
    "recipe, edits",
    [
        ("llama3_debug", []),
        ("llama3_1b", []),  # grouped queries, tied
        ("llama3_8b", []),  # grouped queries, untied
        ("qwen3_4b", []),  # heads together wider than the model
        ("llama3_8b", [EAGER, "set:model.layers[0].attention.window=16"]),
        ("qwen3_0_6b", ["set:model.layers[1].attention.window=16"]),
        ("qwen3_8b", [EAGER, "set:model.layers[:].attention.chunk=8"]),
        ("llama3_3b", ["set:model.layers[0].attention.rope=None"]),
        ("llama3_8b", [f"set:model.layers[0].attention.{size}" for size in ("wq.out_dim=64", "wo.in_dim=64", "n_heads=8")]),
    ],
)  # fmt: skip
def test_flops_are_exactly_those_of_the_math_path(recipe, edits):
    model = built_model(tiny(*edits, recipe=recipe))
    assert flops(model) == model.flops_per_token(LENGTH)


def test_sinks_and_biases_are_no_products():
    cfg = tiny(EAGER)
    zero = fdl.Config(Constant, value=0.0)
    for layer in cfg.model.layers:
        attention = layer.attention
        attention.sink = fdl.Config(AttentionSink, n_heads=attention.n_heads, initializer=zero)
        attention.wq.bias = attention.wo.bias = zero
    model = built_model(cfg)
    assert flops(model) == model.flops_per_token(LENGTH)


class Experts(nn.Module):
    """Token i goes to expert i mod n, beside a router's product: what one token multiplies with,
    and passes by, is plain to see."""

    def __init__(self, *, n: int, dim: int):
        super().__init__()
        self.router = nn.Parameter(torch.randn(n, dim))
        self.weight = nn.Parameter(torch.randn(n, dim, dim))
        self.bias = nn.Parameter(torch.randn(n, dim))

    def active_weights(self) -> int:
        return self.router.numel() + self.weight[0].numel()

    def idle_parameters(self) -> int:
        n = len(self.weight)
        return (n - 1) * (self.weight[0].numel() + self.bias[0].numel())

    def forward(self, x_BLD):
        n = len(self.weight)
        share = (x_BLD @ self.router.T).softmax(-1).amax(-1, keepdim=True)
        pieces = [x_BLD[:, i::n] @ self.weight[i] + self.bias[i] for i in range(n)]
        return torch.stack(pieces, dim=2).flatten(1, 2) * share


def test_experts_that_a_token_passes_by_are_idle():
    model = built_model(tiny())
    dense = model.parameter_counts()
    assert dense.active == dense.total and str(dense) == f"{dense.total:,} parameters"
    dim, layer = model.embedding.dim, model.layers[1]
    hidden = sum(p.numel() for p in layer.feed_forward.parameters())
    layer.feed_forward = Experts(n=4, dim=dim)
    counts = model.parameter_counts()
    assert counts.total == dense.total - hidden + 4 * dim + 4 * (dim * dim + dim)
    assert counts.active == dense.total - hidden + 4 * dim + (dim * dim + dim)
    assert str(counts) == f"{counts.total:,} parameters ({counts.active:,} active)"
    assert flops(model) == model.flops_per_token(LENGTH)


@pytest.mark.parametrize("recipe", DEBUG)
def test_what_is_not_multiplied_with_is_told_to_be_idle(recipe):
    """Or parameters would count as active of which a token uses a part."""
    for module in build(tiny(recipe=recipe)).model.modules():
        if hasattr(module, "active_weights") and not hasattr(module, "idle_parameters"):
            matrices = sum(p.numel() for p in module.parameters() if p.ndim > 1)
            assert module.active_weights() == matrices, type(module).__name__


def test_active_parameters_of_a_published_mixture():
    """Qwen3-30B-A3B: its model card says 30.5 B, of which 3.3 B are activated."""
    counts = build(compose(["config:qwen3_30b_a3b"])).model.parameter_counts()
    expert = 3 * 2048 * 768
    attention = 2 * 2048 * 32 * 128 + 2 * 2048 * 4 * 128 + 2 * 128
    block = attention + 2 * 2048 + 128 * 2048
    outside = 2 * 151_936 * 2048 + 2048
    assert counts.total == outside + 48 * (block + 128 * expert) == 30_532_122_624
    assert counts.active == outside + 48 * (block + 8 * expert)
    assert counts.active // 10**8 == 33


@pytest.mark.parametrize("recipe, tied", [("llama3_debug", False), ("qwen3_debug", True)])
def test_a_tied_weight_counts_once(recipe, tied):
    model = build(compose([f"config:{recipe}"])).model
    counts = model.parameter_counts()
    assert counts.total == counts.active == model.n_parameters()
    assert counts.embedding == 2048 * 256
    assert counts.tied == tied
    blocks = sum(p.numel() for p in model.layers.parameters())
    assert counts.total == blocks + 256 + (1 if tied else 2) * counts.embedding


def held(caches):
    """Bytes of the tensors that caches have."""
    return sum(x.nbytes for cache in caches for x in cache.kept)


@pytest.mark.parametrize("recipe", DEBUG)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_those_of_a_generation(recipe, dtype, monkeypatch):
    model = built_model(tiny(f"tag:ComputeDType={dtype}", recipe=recipe))
    made = []
    new_caches = model.new_caches
    monkeypatch.setattr(
        model,
        "new_caches",
        lambda *, capacity: made.append(new_caches(capacity=capacity)) or made[-1],
    )
    assert list(generate(model, [1, 2, 3], max_new_tokens=7, temperature=0))
    assert len(made) == 1
    assert model.cache_bytes(positions=10) == held(made[0]) > 0


def test_cache_bytes_of_a_batch_and_by_hand():
    model = built_model(tiny("set:model.layers[0].attention.window=2", recipe="llama3_8b"))
    caches = model.new_caches(capacity=20)
    with torch.no_grad():
        model(torch.zeros(3, 5, dtype=torch.int64), caches)
    bytes_of_float32 = model.cache_bytes(positions=20, batch_size=3)
    assert bytes_of_float32 == held(caches)
    assert (
        model.cache_bytes(positions=20, batch_size=3, dtype=torch.bfloat16) * 2 == bytes_of_float32
    )
    whole = build(compose(["config:llama3_8b"])).model
    assert whole.cache_bytes(positions=8192) == 2 * 32 * 8 * 128 * 8192 * 2  # 1 GiB


def test_405b_is_counted_at_once_on_meta():
    model = build(compose(["config:llama3_405b"])).model
    start = time.perf_counter()
    counts = model.parameter_counts()
    found = counts.total, model.flops_per_token(8192), model.cache_bytes(positions=8192)
    assert time.perf_counter() - start < 0.5
    embedding = 128_256 * 16_384
    assert counts.embedding == embedding
    norms = (2 * 126 + 1) * 16_384
    products = 405_853_388_800 - embedding - norms
    assert found == (
        405_853_388_800,
        6 * products + 12 * 126 * 16_384 * 8192,
        2 * 126 * 8 * 128 * 8192 * 2,
    )

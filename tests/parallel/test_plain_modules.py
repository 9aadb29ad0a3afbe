"""Plain modules of another package: what they must say before they are split, and what they cost."""

import fiddle as fdl
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.attention_core import Eager
from nanigpt.models.init import initialize, materialize, uninitialized
from nanigpt.models.parameters import Places
from tests.parallel.families import debug_run
from tests.parallel.plain import LowRank, PlainNorm, PointwiseReLU2, ReLU2
from tests.support import tiny


class Silent(ReLU2):
    """Has a plan above it, but a forward pass of its own."""


class Forgetful(nn.Module):
    """Names styles for its matrices and forgets its own parameter."""

    tensor_parallel = {"up": "column", "down": "row"}

    def __init__(self, *, dim: int):
        super().__init__()
        self.up, self.down = LowRank(in_dim=dim, out_dim=dim), LowRank(in_dim=dim, out_dim=dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def reset_parameters(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        return self.scale * self.down(self.up(x))


class Empty(ReLU2):
    tensor_parallel = {}


class Pointless(ReLU2):
    tensor_parallel = "pointles"


class Changed(PointwiseReLU2):
    """Has another forward pass than the class whose plan it would inherit."""

    def forward(self, x):
        return super().forward(x + x.mean(1, keepdim=True))


class FromZero(nn.Module):
    """Counts positions from 0, as no rank but the first one may."""

    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int, n: int):
        super().__init__()
        self.table = nn.Embedding(n, dim)

    def forward(self, x, positions=None):
        return x + self.table(torch.arange(x.shape[1], device=x.device))


class Bounded(PointwiseReLU2):
    max_sequence_length = 128


class Unset(nn.Module):
    def __init__(self, *, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))

    def forward(self, x):
        return self.gain * x + self.shift


def run_with(feed_forward, **arguments) -> fdl.Config:
    cfg = tiny("fiddler:tensor_parallel(2)")
    dim = cfg.model.embedding.dim
    cfg.model.layers[0].feed_forward = fdl.Config(feed_forward, dim=dim, **arguments)
    return cfg


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        (Silent, {"hidden_dim": 32}, "expected a tensor_parallel plan"),
        (Empty, {"hidden_dim": 32}, "a style for its own scale"),
        (Forgetful, {}, "a style for its own scale"),
        (Pointless, {"hidden_dim": 32}, "tensor_parallel='pointles' to be 'pointwise', 'whole'"),
        (Changed, {"hidden_dim": 32}, "expected a tensor_parallel plan"),
    ],
)
def test_a_module_without_a_whole_plan_is_refused_where_it_would_be_split(
    kind, arguments, expected
):
    with pytest.raises(UsageError, match=expected):
        build(run_with(kind, **arguments)).check(2)
    cfg = run_with(kind, **arguments)
    cfg.parallelizer.mesh.tp = 1
    build(cfg).check(2)


def test_a_module_that_knows_positions_is_not_pointwise():
    cfg = tiny("fiddler:tensor_parallel(2)")
    cfg.model.positions = fdl.Config(FromZero, dim=cfg.model.embedding.dim, n=64)
    with pytest.raises(UsageError, match="'whole' for a module that knows positions"):
        build(cfg).check(2)
    with pytest.raises(UsageError, match="'whole' for a module that knows positions"):
        build(run_with(Bounded, hidden_dim=32)).check(2)


def test_more_of_a_sequence_than_a_rank_has_is_not_given_to_a_module_that_says_nothing():
    cfg = run_with(Silent, hidden_dim=32)
    cfg.parallelizer.mesh.tp, cfg.parallelizer.mesh.cp = 1, 2
    with pytest.raises(UsageError, match="cp=2"):
        build(cfg).check(2)


def test_a_forgotten_value_is_named_before_anything_is_trained():
    cfg = tiny()
    cfg.model.layers[1].feed_forward_norm = fdl.Config(Unset, dim=cfg.model.embedding.dim)
    found = "; ".join(map(str, build(cfg).problems(1)))
    assert "value to the parameter 'gain'" in found
    assert "value to the buffer 'shift'" in found


def test_values_of_plain_modules_survive_meta():
    with torch.device("meta"):
        module = nn.Sequential(PointwiseReLU2(dim=8, hidden_dim=16), PlainNorm(dim=8))
    assert uninitialized(module) == []
    materialize(module, "cpu")
    initialize(module, seed=3)
    assert module[0].scale.tolist() == [0.5] * 8
    assert module[0].offset.item() == 0.25
    assert module[1].gain.tolist() == [1.0] * 8
    again = PointwiseReLU2(dim=8, hidden_dim=16)
    initialize(nn.Sequential(again), seed=3)  # numbers depend on seed and name alone
    assert torch.equal(again.up.weight, module[0].up.weight)
    assert not torch.equal(again.up.weight[0], again.up.weight[1])


@pytest.mark.parametrize("family", ["pointwise", "frozen", "plain"])
def test_flops_of_plain_modules_are_those_that_are_counted(family, tmp_path):
    """Against FlopCounterMode on the whole model, whose attention is written out."""
    cfg = debug_run(family, [], tmp_path)
    for layer in cfg.model.layers:
        if "core" in fdl.get_callable(layer.attention).__init__.__annotations__:
            layer.attention.core = fdl.Config(Eager)
    model = build(cfg.model)
    length = 32
    said = model.flops_per_token(length)
    materialize(model, "cpu")
    initialize(model, seed=0)
    tokens_BL = torch.zeros(2, length, dtype=torch.int64)
    # The counter does not know the flash kernel of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens_BL).sum().backward()
    assert said == counter.get_total_flops() / tokens_BL.numel()


def test_flops_of_further_tokens_include_plain_modules():
    cfg = tiny("fiddler:multi_token(2)")
    dim = cfg.model.embedding.dim
    declared = build(cfg.model).multi_token_flops(32)
    for depth in cfg.model.multi_token.depths:
        depth.embedding_norm = fdl.Config(PlainNorm, dim=dim)  # says no FLOPs, and has none
        depth.block.feed_forward = fdl.Config(nn.Linear, dim, dim, bias=False)
    blocks = build(cfg.model).multi_token
    theirs = sum(6 * p.numel() for d in blocks.depths for p in d.block.feed_forward.parameters())
    feed_forward = tiny("fiddler:multi_token(2)").model.multi_token.depths[0].block.feed_forward
    ours = 2 * 6 * sum(p.numel() for p in build(feed_forward).parameters())
    assert build(cfg.model).multi_token_flops(32) == declared - ours + theirs


def test_attention_of_torch_is_given_its_values():
    with torch.device("meta"):
        attention = nn.MultiheadAttention(8, 2)
    assert uninitialized(attention) == []
    materialize(attention, "cpu")
    initialize(attention, seed=0)
    assert attention.in_proj_weight.std() > 0.1
    assert attention.in_proj_bias.abs().max() == attention.out_proj.bias.abs().max() == 0


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def reset_parameters(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        return self.scale * x


def test_a_parameter_without_a_dim_is_refused_where_it_would_be_sharded():
    cfg = tiny()
    cfg.model.norm = fdl.Config(Scalar)
    trainer = build(cfg)
    trainer.check(1)
    with pytest.raises(UsageError, match="the parameter 'scale' with a dim, such as torch.ones"):
        trainer.check(2)


def test_counts_tell_what_is_trained(tmp_path):
    counts = build(debug_run("frozen", [], tmp_path).model).parameter_counts()
    frozen = 4 * (2 * 32 * 32 + 2 * 32 * 16)
    assert counts.total - counts.trainable == frozen
    assert f"{counts.trainable:,} trainable" in str(counts)


def test_a_replaced_parameter_keeps_everything_else():
    module, head = nn.Linear(2, 2), nn.Linear(2, 2)
    head.weight = module.weight
    module.weight.requires_grad_(False)
    module.weight.mark = "of a user"
    both = nn.ModuleList([module, head])
    new = Places(both).replace(module.weight, torch.zeros(2, 2))
    assert module.weight is head.weight is new
    assert not new.requires_grad
    assert new.mark == "of a user"

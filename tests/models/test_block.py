"""Blocks against their equations: where norms are, and what reads what."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.models.block import ParallelBlock, TransformerBlock
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.init import FanInNormal, initialize, materialize
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import RotaryEmbedding
from tests.support import QUICK, tiny, train

DIM = 16
X = torch.randn(2, 8, DIM, generator=torch.Generator().manual_seed(0))


def norm():
    cfg = nodes.norm(DIM)
    cfg.initializer = fdl.Config(FanInNormal)  # so that norms differ
    return cfg


def block_of(kind, **norms):
    rope = fdl.Config(RotaryEmbedding, head_dim=4, max_sequence_length=8)
    cfg = fdl.Config(
        kind,
        attention=nodes.attention(
            dim=DIM, n_heads=4, n_kv_heads=2, head_dim=4, rope=rope, output_scale=1.0
        ),
        feed_forward=nodes.feed_forward(dim=DIM, hidden_dim=24, output_scale=1.0),
        **norms,
    )
    block = build(cfg)
    materialize(block, "cpu")
    initialize(block, seed=0)
    return block


def test_norms_before():
    b = block_of(TransformerBlock, attention_norm=norm(), feed_forward_norm=norm())
    h = X + b.attention(b.attention_norm(X))
    assert torch.equal(b(X), h + b.feed_forward(b.feed_forward_norm(h)))


def test_norms_behind():
    behind = {"post_attention_norm": norm(), "post_feed_forward_norm": norm()}
    b = block_of(TransformerBlock, attention_norm=None, feed_forward_norm=None, **behind)
    h = X + b.post_attention_norm(b.attention(X))
    assert torch.equal(b(X), h + b.post_feed_forward_norm(b.feed_forward(h)))
    assert b.stream_dims()["post_attention_norm.dim"] == DIM


def test_norms_before_and_behind():
    names = ("attention", "feed_forward", "post_attention", "post_feed_forward")
    b = block_of(TransformerBlock, **{f"{name}_norm": norm() for name in names})
    h = X + b.post_attention_norm(b.attention(b.attention_norm(X)))
    expected = h + b.post_feed_forward_norm(b.feed_forward(b.feed_forward_norm(h)))
    assert torch.equal(b(X), expected)


@pytest.mark.parametrize("n_norms", [1, 2])
def test_attention_and_feed_forward_side_by_side(n_norms):
    norms = {"attention_norm": norm()}
    if n_norms == 2:
        norms["feed_forward_norm"] = norm()
    b = block_of(ParallelBlock, **norms)
    second = b.feed_forward_norm or b.attention_norm
    expected = X + b.attention(b.attention_norm(X)) + b.feed_forward(second(X))
    assert torch.equal(b(X), expected)


def test_a_norm_that_is_no_norm_is_named():
    with pytest.raises(UsageError, match="post_attention_norm"):
        norms = {"attention_norm": norm(), "feed_forward_norm": norm()}
        block_of(TransformerBlock, **norms, post_attention_norm=3)


def parallel_run():
    cfg = tiny("fiddler:steps(2)", *QUICK)
    for layer in cfg.model.layers:
        del layer.feed_forward_norm
        fdl.update_callable(layer, ParallelBlock)
    return cfg


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_a_run_of_parallel_blocks(mode, tmp_path):
    cfg = parallel_run()
    for layer in cfg.model.layers:
        layer.activation_checkpointing = mode
    losses = [row["loss"] for row in train(cfg, tmp_path)]
    assert losses == [row["loss"] for row in train(parallel_run(), tmp_path / "plain")]


@pytest.mark.parametrize("name", ["post_attention_norm", "post_feed_forward_norm"])
def test_families_of_norms_before_refuse_others(name):
    cfg = tiny(recipe="llama3_1b").model
    without_gain = fdl.Config(RMSNorm, dim=cfg.embedding.dim, initializer=None)
    setattr(cfg.layers[1], name, without_gain)  # one with a gain is a tensor too many
    with pytest.raises(UsageError, match=rf"layers\[1\].{name} is .*: expected None"):
        family_of(build(cfg))


def test_families_refuse_parallel_blocks():
    with pytest.raises(UsageError, match="layers have ParallelBlock: expected TransformerBlock"):
        family_of(build(parallel_run().model))

"""What cannot be sharded, pipelined or trained is refused before a process starts."""

import fiddle as fdl
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.attention_core import Eager
from nanigpt.models.init import initialize, materialize
from tests.parallel.families import FrozenEmbedding, FrozenLinear, debug_run
from tests.support import tiny


class Frozen(nn.Module):
    """A feed-forward network that is not trained."""

    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int):
        super().__init__()
        self.inner = nn.Linear(dim, dim).requires_grad_(False)

    def forward(self, x):
        return self.inner(x)


class Masked(nn.Linear):
    """A projection with a buffer, which DTensors cannot meet."""

    def __init__(self, *, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, bias=False)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.register_buffer("mask", torch.ones(out_dim, in_dim))

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "mask"):
            self.mask.fill_(1)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask)


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ("fiddler:fsdp(2)", "a separate node in each layer for dp_replicate"),
        ("fiddler:hsdp(2)", "a separate node in each layer for dp_replicate"),
        ("fiddler:pipeline(2, '1F1B', 4)", "a separate node in each layer for pp > 1"),
    ],
)
@pytest.mark.parametrize("shared", ["feed_forward", "attention_norm"])
def test_weights_that_layers_share_are_neither_sharded_nor_pipelined(
    shared, mesh, expected, tmp_path
):
    cfg = debug_run("plain", [mesh], tmp_path)
    for layer in cfg.model.layers[1:]:
        setattr(layer, shared, getattr(cfg.model.layers[0], shared))
    with pytest.raises(UsageError, match=expected):
        build(cfg).check(2)
    build(debug_run("plain", [mesh], tmp_path)).check(2)


def test_a_weight_that_a_layer_uses_twice_has_one_backward_pass(tmp_path):
    for schedule, fits in (("1F1B", True), ("ZBVZeroBubble", False)):
        cfg = debug_run("plain", [f"fiddler:pipeline(2, '{schedule}', 4)"], tmp_path)
        cfg.model.layers[0].feed_forward_norm = cfg.model.layers[0].attention_norm
        trainer = build(cfg)
        if fits:
            trainer.check(2)
            continue
        with pytest.raises(UsageError, match="a weight that a layer uses twice"):
            trainer.check(2)


def test_a_frozen_first_stage_has_no_gradients_to_split(tmp_path):
    for schedule, fits in (("1F1B", True), ("ZBVZeroBubble", False)):
        cfg = debug_run("plain", [f"fiddler:pipeline(2, '{schedule}', 4)"], tmp_path)
        trainer = build(cfg)
        trainer.model.embedding.requires_grad_(False)
        trainer.model.layers[:2].requires_grad_(False)
        if fits:
            trainer.check(2)
            continue
        with pytest.raises(UsageError, match="stage 0 is frozen"):
            trainer.check(2)


def test_something_must_be_trained():
    trainer = build(tiny())
    trainer.model.requires_grad_(False)
    with pytest.raises(UsageError, match="every parameter of the model is frozen"):
        trainer.check(1)


def test_buffers_of_split_modules_are_refused(tmp_path):
    cfg = debug_run("plain", ["fiddler:tensor_parallel(2)"], tmp_path)
    wq = cfg.model.layers[0].attention.wq
    cfg.model.layers[0].attention.wq = fdl.Config(Masked, in_dim=wq.in_dim, out_dim=wq.out_dim)
    with pytest.raises(UsageError, match=r"no buffer \(mask\) in a module that is split"):
        build(cfg).check(2)


def test_flops_end_at_the_first_layer_that_is_trained(tmp_path):
    cfg = debug_run("plain", [], tmp_path)
    fdl.update_callable(cfg.model.embedding, FrozenEmbedding)
    for layer in cfg.model.layers[:2]:
        for module, names in (
            ("attention", ("wq", "wk", "wv", "wo")),
            ("feed_forward", ("w1", "w2", "w3")),
        ):
            for name in names:
                fdl.update_callable(getattr(getattr(layer, module), name), FrozenLinear)
        layer.attention_norm.initializer = layer.feed_forward_norm.initializer = None
    for layer in cfg.model.layers:
        layer.attention.core = fdl.Config(Eager)
    model = build(cfg.model)
    said = model.flops_per_token(32)
    materialize(model, "cpu")
    initialize(model, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 32, dtype=torch.int64)).sum().backward()
    # The first trained layer computes no gradients of its input, which is not discounted.
    assert said == pytest.approx(counter.get_total_flops() / 64, rel=0.05)

"""torch.compile, block by block, of blocks that are not alike."""

import copy

import fiddle as fdl
import torch
from torch._dynamo.utils import counters

from nanigpt.models.attention_extras import AttentionSink
from nanigpt.models.init import Constant
from nanigpt.parallel.compile import Compile
from tests.support import built_model, tiny


@torch._dynamo.config.patch(recompile_limit=2)
def test_as_many_kinds_of_blocks_as_there_are_may_be_compiled():
    """Four blocks of three kinds, more than torch compiles one function by default here."""
    cfg = tiny(recipe="qwen3_debug")
    rope = cfg.model.layers[0].attention.rope
    cfg.model.layers = [copy.deepcopy(cfg.model.layers[0]) for _ in range(4)]
    for layer in cfg.model.layers:
        layer.attention.rope = rope
    _, _, local, sinking = (layer.attention for layer in cfg.model.layers)
    local.window = 5
    sinking.sink = fdl.Config(
        AttentionSink, n_heads=sinking.n_heads, initializer=fdl.Config(Constant, value=1.0)
    )
    whole, compiled = built_model(cfg), built_model(cfg)
    torch._dynamo.reset()
    counters.clear()
    Compile(backend="eager").apply(compiled)
    tokens = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))
    logits = [model(tokens) for model in (whole, compiled)]
    torch.testing.assert_close(*logits)
    for each in logits:
        each.square().mean().backward()
    for a, b in zip(whole.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    assert counters["stats"]["unique_graphs"] == 3

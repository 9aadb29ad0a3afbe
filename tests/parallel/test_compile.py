"""torch.compile: of blocks that are not alike, of the whole model, and how often."""

import copy

import fiddle as fdl
import pytest
import torch
from torch._dynamo.utils import counters

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.attention_extras import AttentionSink
from nanigpt.models.init import Constant
from nanigpt.parallel.compile import Compilations, Compile
from nanigpt.parallel.remat import Recomputation
from tests.support import built_model, tiny, train


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


@pytest.fixture
def patched():
    """Settings of the compiler before and after, which must be alike."""
    import torch._functorch.config as functorch

    def settings():
        return torch._dynamo.config.get_config_copy(), functorch.get_config_copy()

    torch._dynamo.reset()
    before = settings()
    yield
    assert settings() == before


def test_what_is_compiled_late_is_counted_and_told(patched, caplog):
    """The settings of the process stay what they were, too."""
    model = built_model(tiny("tag:ActivationCheckpointing=budget", recipe="qwen3_moe_debug"))
    Recomputation().apply(model, Compile(backend="aot_eager").apply)
    compilations = Compilations()
    seen = []
    for length in (8, 8, 8, 12):
        model(torch.zeros(1, length, dtype=torch.int64)).sum().backward()
        seen.append(compilations.after("training step", settled=2))
        warnings = [r for r in caplog.records if r.name == "nanigpt.parallel.compile"]
        assert len(warnings) == (length == 12)
    assert [n - seen[0] for n in seen] == [0, 0, 0, 1]
    told = warnings[0].getMessage()
    assert "compiled 1 graphs in training step number 4" in told
    assert "expected 8, actual 12" in told or "size mismatch" in told


def test_functions_are_compiled_too(patched):
    compile, before = Compile(backend="aot_eager"), Compilations().after("", settled=1)
    double = compile.function(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert Compilations().after("", settled=1) == before + 1
    with pytest.raises(torch._dynamo.exc.Unsupported):  # one graph or none
        compile.function(lambda x: x if x.sum() > 0 else -x)(torch.ones(2))


def test_a_run_of_a_compiled_model_counts_graphs(patched, tmp_path):
    cfg = tiny("fiddler:compile(backend='aot_eager', scope='model')", "fiddler:steps(3)")
    cfg.evaluations["val"].interval = 2
    rows = train(cfg, tmp_path / "compiled")
    plain = train(tiny("fiddler:steps(3)"), tmp_path / "plain")
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in plain])
    counts = [row["compilations"] for row in rows]
    assert [n - counts[0] for n in counts] == [0, 1, 1]  # the evaluation is another graph
    assert "compilations" not in plain[0]


def test_a_backend_that_is_not_there_is_refused():
    trainer = build(tiny("fiddler:compile(backend='inductr')"))
    with pytest.raises(UsageError, match="backend='inductr': expected one of .*inductor"):
        trainer.check(1)
    build(tiny("fiddler:compile(backend='eager')")).check(1)


def test_what_each_compilation_of_selective_blocks_would_warn_of_is_not_told(caplog):
    torch._dynamo.reset()
    torch._logging._internal.warning_once.cache_clear()
    model = built_model(tiny("tag:ActivationCheckpointing=selective"))
    with caplog.at_level("WARNING"):
        Recomputation().apply(model, Compile(backend="aot_eager").apply)
        model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    assert "context_fn" not in caplog.text

"""Float8 in configs: what its fiddler and tag reach, what is shown of it, what is refused."""

import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from tests.support import each_recipe, flags, tiny


@pytest.mark.parametrize("recipe", each_recipe())
def test_every_recipe_takes_it_and_shows_it(recipe, capsys):
    common = flags(f"config:{recipe}", "fiddler:float8(recipe='rowwise')")
    assert main(["check", *common]) == 0
    assert main(["show", "--format=flat", *common]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if ".float8 = 'rowwise'" in line]
    assert any("model.layers[0].attention.w" in line for line in shown)
    assert not any("router" in line or "head" in line for line in shown)


def test_diff_tells_each_kind_of_layer_once(capsys):
    assert main(["diff", "config:llama3_1b", "config:llama3_1b fiddler:float8"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "model.layers[0:16].feed_forward.w2.float8: None -> 'tensorwise'  x16" in told
    assert sum(".float8: None -> 'tensorwise'" in line for line in told) == 7


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            "set:model.layers[0].attention.wq.float8=rowwise",
            "expected None with in_dim=24, out_dim=24",
        ),
        ("tag:Float8=rows", "expected one of 'tensorwise', 'rowwise'"),
        ("fiddler:float8('fp8')", "expected one of 'tensorwise', 'rowwise'"),
        ("fiddler:float8", "no projection has sizes that are multiples of 16"),
    ],
)
def test_sizes_and_recipes_are_checked(edit, message):
    with pytest.raises(UsageError, match=message):
        build(narrow(edit))


def narrow(edit):
    """Of projections 24 and 72 wide."""
    from nanigpt.config.compose.flag import compose
    from nanigpt.experiments.llama3 import llama3_model

    cfg = tiny()
    cfg.model = llama3_model(
        dim=24, n_layers=1, n_heads=2, n_kv_heads=2, hidden_dim=72, vocab_size=512,
        sequence_length=64, compute_dtype=torch.float32,
    )  # fmt: skip
    return compose([edit], cfg)


@pytest.mark.parametrize(
    "recipe, edit, message",
    [
        ("llama3_1b", "fiddler:float8(head=True)", "the head has the embedding's weight"),
        ("llama3_debug", "fiddler:float8(experts=True)", "experts support the recipes rowwise and"),
        ("llama3_debug", "fiddler:float8('rowwise', experts=True)", "no experts at all"),
        (
            "deepseek_v3_debug",
            "tag:Float8=tensorwise",
            "experts.float8.*'rowwise', 'mxfp8' or None",
        ),
    ],
)
def test_what_a_model_does_not_have_is_refused(recipe, edit, message):
    with pytest.raises(UsageError, match=message):
        tiny(edit, recipe=recipe)


def test_experts_and_head_are_named():
    cfg = tiny("fiddler:float8('rowwise', head=True, experts=True)", recipe="deepseek_v3_debug")
    assert cfg.model.head.float8 == "rowwise"
    assert [layer.feed_forward.experts.float8 for layer in cfg.model.layers[1:]] == ["rowwise"]
    plain = tiny("fiddler:float8('rowwise')", recipe="deepseek_v3_debug")
    assert [layer.feed_forward.experts.float8 for layer in plain.model.layers[1:]] == [None]

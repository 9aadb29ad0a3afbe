"""Advice about what a command line may have meant."""

import logging
import re

import fiddle as fdl
import pytest

from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.hints import as_recipe_argument


@pytest.mark.parametrize(
    ("base", "directive", "expected"),
    [
        ("config:llama3_debug", "set:model.dim=512", "config:llama3_debug(dim=512)"),
        (
            "config:llama3_debug(n_layers=4)",
            "set:dim=512",
            "config:llama3_debug(n_layers=4,dim=512)",
        ),
        ("config:llama3_debug(dim=64)", "set:dim=512", "config:llama3_debug(dim=512)"),
        ("config:llama3_debug", "set:model.nothing=512", None),
        ("config:llama3_debug", "set:optimizer.lr=1", None),
        ("run:somewhere", "set:model.dim=512", None),
        ("config:llama3_debug", "tag:Width=512", None),
        ("config:llama3_debug", "set:model.layers[=1", None),
    ],
)
def test_a_size_as_an_argument_of_the_recipe(base, directive, expected):
    assert as_recipe_argument(base, directive) == expected


@pytest.mark.parametrize(
    ("edit", "places"),
    [
        ("model.layers[0].attention.rope.theta=1e4", 6),
        ("model.layers[0:3].attention.rope.theta=1e4", 6),
        ("model.layers[*].attention.rope.theta=1e4", None),
        ("model.layers[0].attention.n_heads=16", None),
        ("model.layers[0].attention.rope=none", None),
        ("model.embedding.vocab_size=2048", None),
    ],
)
def test_an_edit_of_a_shared_node_is_told(edit, places, caplog):
    with caplog.at_level(logging.WARNING):
        cfg = compose(["config:llama3_debug", f"set:{edit}"])
    if places is None:
        assert not caplog.text
        return
    assert f"model.layers[0].attention.rope is one node that {places} places share" in caplog.text
    assert cfg.model.layers[5].attention.rope.theta == 1e4
    (advice,) = re.findall("--config='(set:.*)'", caplog.text)
    own = compose(["config:llama3_debug", advice])
    thetas = [layer.attention.rope.theta for layer in own.model.layers]
    assert thetas == [1e4, *[500_000.0] * 5]
    assert own.model.layers[0].attention.rope is not own.model.layers[1].attention.rope
    assert fdl.get_callable(own.model.layers[0].attention.rope).__name__ == "RotaryEmbedding"

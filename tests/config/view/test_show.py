"""Configs and their differences as text."""

import json
import sys

import fiddle as fdl
import pytest

from nanigpt.config.compose.flag import compose
from nanigpt.config.view.diff import render as render_diff
from nanigpt.config.view.show import render
from nanigpt.errors import UsageError
from tests.config.components import Part, Rate, Whole, whole


def test_tree():
    cfg = whole()
    cfg.parts = [
        fdl.Config(Part),
        fdl.Config(Part, rate=0.5),
        fdl.Config(Part, size=7),
        cfg.parts[0],
    ]
    cfg.parts.append(cfg.parts[-1])
    assert render(cfg).splitlines() == [
        "Whole",
        "  name = 'w'",
        "  parts[0:2]: Part  x2",
        "    size = 3",
        "    rate = 0.5  #Rate",
        "  parts[2]: Part",
        "    size = 7",
        "    rate = 0.5  #Rate",
        "  parts[3:5]: Part  x2 the same node",
        "    size = 3",
        "    rate = 0.5  #Rate",
        "  path = None",
        "  count = 1",
        "  exact = False",
        "  limit = None",
        "  dtype = torch.float32",
        "  pair = (0.9, 0.95)",
        "  table:",
        "    'a' = 1",
        "  mode = 'fast'",
        "  color = None",
        "  names = None",
    ]


def test_defaults_are_dimmed_on_a_terminal():
    lines = render(fdl.Config(Part, size=7), color=True).splitlines()
    assert lines == ["Part", "  size = 7", "\033[2m  rate = 0.5  #Rate\033[0m"]


def test_a_shared_node_is_shown_once():
    cfg = compose(["config:llama3_1b"])
    text = render(cfg)
    assert text.count("theta = 500000.0") == 1
    assert "layers[0:16]: TransformerBlock  x16" in text
    assert "embedding: Embedding (the node model.embedding)" in text


def test_flat_and_json_have_every_value():
    cfg = whole()
    flat = render(cfg, format="flat").splitlines()
    assert flat[0] == "(root) = Whole"
    assert "parts[1].rate = 0.5" in flat
    assert "parts[2] = (the node parts[0])" in flat
    values = json.loads(render(cfg, format="json"))
    assert (values["name"], values["table['a']"], values["path"]) == ("w", 1, None)
    assert (values["parts[1].rate"], values["pair"]) == (0.5, [0.9, 0.95])
    assert (values["dtype"], values["parts[2]"]) == ("torch.float32", "(the node parts[0])")
    assert len(values) == len(flat)
    with pytest.raises(UsageError, match="expected one of tree, flat, python, json, dot, html"):
        render(cfg, format="xml")


def test_folded_rows_tell_sharing_and_tags():
    """Three references to one node are not three nodes, and an extra tag is no detail."""
    shared = fdl.Config(Part)

    def heads(*parts: fdl.Config) -> list[str]:
        lines = render(fdl.Config(Whole, name="w", parts=list(parts))).splitlines()
        return [line.strip() for line in lines if "Part" in line]

    assert heads(shared, shared, shared) == ["parts[0:3]: Part  x3 the same node"]
    assert heads(*(fdl.Config(Part) for _ in range(3))) == ["parts[0:3]: Part  x3"]
    assert heads(*(fdl.Config(Part, size=shared) for _ in range(3))) == [
        "parts[0:3]: Part  x3",
        "size: Part  one node in all 3",
    ]
    pair = [fdl.Config(Part, size=shared), fdl.Config(Part, size=shared)]
    assert heads(*pair, fdl.Config(Part, size=fdl.Config(Part))) == [
        "parts[0:2]: Part  x2",
        "size: Part  one node in all 2",
        "parts[2]: Part",
        "size: Part",
    ]
    tagged = fdl.Config(Part)
    fdl.add_tag(tagged, "size", Rate)
    assert heads(fdl.Config(Part), tagged, fdl.Config(Part)) == [
        f"parts[{i}]: Part" for i in range(3)
    ]


def test_what_is_nested_too_deep_is_told():
    cfg = fdl.Config(Part)
    for _ in range(sys.getrecursionlimit()):
        cfg = fdl.Config(Part, size=cfg)
    for format in ("tree", "flat", "python", "json", "dot", "html"):
        with pytest.raises(UsageError, match="nests deeper"):
            render(cfg, format=format)


def test_only_indices_of_lists_are_folded():
    old, new = (
        fdl.Config(Whole, name="w", parts={i: fdl.Config(Part, size=size) for i in range(3)})
        for size in (1, 2)
    )
    assert render_diff(old, new).splitlines() == [f"parts[{i}].size: 1 -> 2" for i in range(3)]
    old, new = (fdl.Config(Whole, name="w", parts={"a[0]": n, "a[1]": n}) for n in (1, 2))
    assert render_diff(old, new).splitlines() == ["parts['a[0]']: 1 -> 2", "parts['a[1]']: 1 -> 2"]


def test_equal_changes_of_layers_are_folded():
    edits = [
        "set:model.layers[*].attention.wq.initializer.scale=2",
        "set:model.layers[::4].activation_checkpointing=full",
        "set:model.layers[5].feed_forward.w1.initializer.scale=3",
        "set:optimizer.lr=1",
    ]
    old, new = (compose(["config:llama3_8b", *e]) for e in ([], edits))
    assert render_diff(old, new).splitlines() == [
        "model.layers[0:32].attention.wq.initializer.scale: 1.0 -> 2.0  x32",
        "model.layers[0:29:4].activation_checkpointing: 'none' -> 'full'  x8",
        "model.layers[5].feed_forward.w1.initializer.scale: 1.0 -> 3.0",
        "optimizer.lr: 0.0003 -> 1.0",
    ]
    rows = json.loads(render_diff(old, new, format="json"))
    assert rows[3] == {"path": "optimizer.lr", "old": "0.0003", "new": "1.0"}
    assert render_diff(old, old) == ""


def test_what_one_side_lacks_is_told_once():
    old, new = compose(["config:llama3_1b"]), compose(["config:llama3_3b"])
    lines = render_diff(old, new).splitlines()
    assert "model.layers[16:28]: (absent) -> TransformerBlock  x12" in lines
    assert not any(line.startswith("model.layers[16:28].") for line in lines)

"""The DAG as boxes and edges, as Graphviz's text, and as SVG."""

import shutil
import xml.etree.ElementTree as ElementTree
from html import escape

import fiddle as fdl
import pytest
from PIL import Image

from nanigpt.config.compose.flag import compose
from nanigpt.config.view.graph import dot, svg
from nanigpt.config.view.graph_model import boxes
from nanigpt.config.view.html import page
from nanigpt.config.view.notebook import graph
from nanigpt.errors import UsageError
from tests.config.browser import needs_browser, screenshot
from tests.config.components import Part, Whole, whole

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None,
    reason="dot is not on the PATH; on Debian: apt-get install graphviz",
)


def named(graph):
    """Edges as (title, label, title)."""
    texts = graph.labels()
    return [(graph.boxes[a].title, texts[a, b], graph.boxes[b].title) for a, b in texts]


@pytest.fixture
def without_dot(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def evil():
    return fdl.Config(Whole, name='"<b>&\\ ü', parts=[], table={'a"<b>': fdl.Config(Part, size=5)})


def test_equal_neighbours_are_one_box_and_shared_nodes_have_many_edges():
    model = compose(["config:llama3_1b"]).model
    edges = named(boxes(model))
    assert ("Decoder", "layers[0:16]", "TransformerBlock ×16") in edges
    assert ("Decoder", "embedding", "Embedding") in edges
    assert ("TiedHead", "embedding", "Embedding") in edges
    titles = [box.title for box in boxes(model).boxes]
    assert titles.count("Embedding") == titles.count("RotaryEmbedding") == 1
    model.layers[7].attention.n_heads = 16
    edges = named(boxes(model))
    assert ("Decoder", "layers[7]", "TransformerBlock") in edges
    assert edges.count(("Attention", "rope", "RotaryEmbedding")) == 3


def test_several_arguments_between_two_nodes_are_one_edge():
    cfg = whole()
    part = cfg.parts[0]
    cfg.parts = [part, fdl.Config(Part, size=9), part, fdl.Config(Part, size=8), part]
    cfg.path = cfg.limit = part
    assert ("Whole", "parts[0], parts[2], parts[4] and 2 more", "Part") in named(boxes(cfg))


def test_depth_says_what_it_leaves_out():
    cfg = compose(["config:llama3_1b"])
    drawn = boxes(cfg, depth=1)
    decoder = next(box for box in drawn.boxes if box.title == "Decoder")
    every = len(boxes(cfg.model).boxes)
    assert decoder.lines[-1] == f"{every - 1} nodes below"
    assert {a for a, _ in drawn.edges} == {0}
    assert [box.title for box in boxes(cfg, depth=0).boxes] == ["Trainer"]


def test_a_node_is_drawn_that_is_shared_with_what_is_too_deep():
    shared = fdl.Config(Part)
    cfg = fdl.Config(Whole, name="n", parts=[fdl.Config(Part, size=shared)], path=shared)
    assert ("Whole", "path", "Part") in named(boxes(cfg, depth=1))


def test_dot_text():
    text = dot(evil())
    assert "n0 [label=<<b>Whole</b>" in text
    assert "name = &#x27;&quot;&lt;b&gt;&amp;\\\\ ü&#x27;" in text
    assert """n0 -> n1 [label="table['a\\"<b>']"]""" in text


@needs_dot
def test_graphviz_draws_every_box_and_edge():
    for cfg in (evil(), compose(["config:llama3_8b"])):
        drawn, picture = boxes(cfg), svg(cfg)
        ElementTree.fromstring(picture)
        assert picture.count('class="node"') == len(drawn.boxes)
        assert picture.count('class="edge"') == len(drawn.edges)


@pytest.mark.parametrize("make", [evil, whole, lambda: fdl.Config(Part)])
def test_without_graphviz_a_notebook_shows_the_source(without_dot, make):
    cfg = make()
    with pytest.raises(UsageError, match="apt-get install graphviz"):
        svg(cfg)
    shown = graph(cfg).data
    assert "Graphviz is not installed" in shown
    assert escape(dot(cfg)) in shown


@needs_dot
@needs_browser
def test_a_browser_shows_the_picture(tmp_path):
    picture = svg(compose(["config:llama3_debug"]))
    shown = Image.open(screenshot(page(picture, title="graph"), tmp_path)).convert("RGB")
    assert len(shown.getcolors(maxcolors=1 << 20)) > 50

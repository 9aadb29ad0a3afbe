"""A config as a tree in HTML, and how the tree behaves in a browser."""

import json
import re
import time
from html.parser import HTMLParser

import fiddle as fdl
import pytest
from PIL import Image

from nanigpt.config.compose.flag import compose
from nanigpt.config.view.diff import diff
from nanigpt.config.view.html import count, html, page, tree_html
from nanigpt.config.view.html_diff import diff_html
from tests.config.browser import needs_browser, run_script, screenshot
from tests.config.components import Part, Whole, whole

# What every script begins with: which rows are seen, and how one searches and clicks.
_TOOLS = """
const tree = document.querySelector('.nanigpt-tree');
const input = tree.querySelector('input');
const rowOf = (item) => item.matches('details') ? item.firstElementChild : item;
const rows = () => [...tree.querySelectorAll('[data-path]')]
  .filter((item) => rowOf(item).checkVisibility()).map((item) => item.dataset.path);
const item = (path) => tree.querySelector(`[data-path="${path}"]`);
const search = (text) => { input.value = text; input.dispatchEvent(new Event('input')); };
const hits = () => [...tree.querySelectorAll('.hit')].map((row) => row.closest('[data-path]').dataset.path);
const says = () => tree.querySelector('.count').textContent;
"""


@pytest.fixture(scope="module")
def llama():
    return html(compose(["config:llama3_8b", "tag:LearningRate=1e-3"]), title="llama3_8b")


def browse(markup, script, folder):
    return json.loads(run_script(markup, f"{_TOOLS} return JSON.stringify({script});", folder))


def test_rows_are_folded_and_shared_nodes_are_links():
    cfg = whole()
    cfg.parts = [fdl.Config(Part), fdl.Config(Part, rate=0.5), fdl.Config(Part, size=7)]
    shared = fdl.Config(Part, size=9)
    cfg.parts += [shared, shared]
    cfg.path = shared
    text = tree_html(cfg)
    assert re.findall(r'data-path="(.*?)"', text)[:8] == [
        "", "name", "parts[0:2]", "parts[0:2].size", "parts[0:2].rate",
        "parts[2]", "parts[2].size", "parts[2].rate",
    ]  # fmt: skip
    assert "×2</span>" in text
    assert "×2 the same node</span>" in text  # not two that are equal
    assert '<a href="#" data-to="parts[3:5]">(the node parts[3])</a>' in text


def test_an_element_that_shares_a_node_with_another_place_is_not_folded():
    cfg = whole()
    cfg.parts = [fdl.Config(Part, size=fdl.Config(Part)) for _ in range(3)]
    cfg.path = cfg.parts[1].size
    page = tree_html(cfg)
    assert '<a href="#" data-to="parts[1].size">(the node parts[1].size)</a>' in page
    assert "×" not in page


def test_hovering_tells_provenance_tags_and_classes(llama):
    assert 'title="set by --config=tag:LearningRate=1e-3, was 0.0003 in ' in llama
    assert 'title="LearningRate: Peak learning rate of an optimizer."' in llama
    assert 'title="nanigpt.models.norm.RMSNorm\n' in llama
    assert llama.count('style="--hue:') > 20


def test_everything_is_escaped():
    evil = '"><script>alert(1)</script>&'
    cfg = fdl.Config(Whole, name=evil, parts=[], table={evil: 1})

    class Rows(HTMLParser):
        opened = []

        def handle_starttag(self, tag, attributes):
            self.opened.append(tag)

    text = html(cfg, title=evil)
    Rows().feed(text)
    assert "alert(1)</script>" not in text
    assert Rows.opened.count("script") == 1


def test_what_is_not_set_and_why_there_are_no_sizes():
    text = tree_html(fdl.Config(Whole, parts=[fdl.Config(Part)]))
    assert "required, not set" in text
    assert "no sizes: name: required by Whole, not set" in text
    assert "required, not set" not in tree_html(fdl.Partial(Whole))


def test_values_that_cannot_be_compared_are_shown():
    cfg = whole()
    cfg.parts[1].size = lambda: 3
    text = tree_html(cfg)
    assert "no fingerprint" in text and "no sizes: " in text
    assert 'data-path="parts[1].size"' in text


def test_long_values_are_cut():
    text = tree_html(fdl.Config(Part, size=[7] * 50_000))
    assert "… (150,000 characters)" in text
    assert len(text) < 30_000


def test_sizes_are_told_in_three_digits(llama):
    assert "8.03 B parameters" in llama
    assert "6.98 B parameters · 218 M each" in llama
    assert "weight [128256, 4096]" in llama
    assert [count(n) for n in (7, 9_999, 10_000, 999_499, 999_500, 405_853_388_800)] == [
        "7", "9,999", "10 K", "999 K", "1 M", "406 B",
    ]  # fmt: skip


def test_405b_is_fast_and_small():
    cfg = compose(["config:llama3_405b"])
    start = time.process_time()
    text = html(cfg)
    assert time.process_time() - start < 2
    assert len(text) < 100_000
    assert "http" not in text.replace("http://www.w3.org", "")  # it asks no network for anything


def test_a_diff_stands_side_by_side():
    edits = ["set:model.layers[*].attention.wq.initializer.scale=2", "set:data.corpus.path=a<b"]
    old, new = (compose(["config:llama3_8b", *e]) for e in ([], [*edits, "set:device=cpu"]))
    text = diff_html(diff(old, new), old="before", new="after")
    assert "34 values differ" in text and "<th>before</th><th>after</th>" in text
    headings = re.findall(r'<th class="place" colspan="3">(.*?)</th>', text)
    assert headings == ["model.layers[0:32].attention.wq.initializer", "data.corpus", "(root)"]
    assert 'scale <span class="times">×32</span></td><td class="old">1.0</td>' in text
    assert "&#x27;a&lt;b&#x27;" in text
    assert "no difference" in diff_html([])


def test_a_diff_marks_what_differs_in_a_long_value():
    old, new = whole(), whole()
    new.pair = (0.9, 0.99)
    text = diff_html(diff(old, new))
    assert '<td class="old">(0.9, 0.<mark>95</mark>)</td>' in text
    assert '<td class="new">(0.9, 0.<mark>99</mark>)</td>' in text


@needs_browser
def test_the_search_in_a_browser(llama, tmp_path):
    script = """(() => {
      const result = {all: says(), before: rows()};
      search('wq  WIDTH');
      result.wq = {rows: rows(), hits: hits(), says: says()};
      search('layers[7].attention');
      result.layer = hits();
      search('lr=0.001');
      result.value = hits();
      search('rmsnorm');
      result.class = hits();
      search('no such thing');
      result.none = {rows: rows(), says: says()};
      search('');
      result.after = rows();
      return result;
    })()"""
    found = browse(llama, script, tmp_path)
    total = found["all"].removesuffix(" rows")
    assert int(total) > 100
    assert found["before"][:3] == ["", "model", "data"] and "model.head" not in found["before"]
    wq = "model.layers[0:32].attention.wq"
    assert found["wq"] == {
        "rows": ["", "model", "model.layers[0:32]", "model.layers[0:32].attention", wq,
                 f"{wq}.in_dim", f"{wq}.out_dim"],
        "hits": [f"{wq}.in_dim", f"{wq}.out_dim"],
        "says": f"2 of {total}",
    }  # fmt: skip
    assert "model.layers[0:32].attention" in found["layer"] and wq not in found["layer"]
    assert found["value"] == ["optimizer.lr"]
    assert found["class"] == [
        "model.layers[0:32].attention_norm",
        "model.layers[0:32].feed_forward_norm",
        "model.norm",
    ]
    assert found["none"] == {"rows": [], "says": f"0 of {total}"}
    assert found["after"] == found["before"]


@needs_browser
def test_folding_copying_and_links_in_a_browser(tmp_path):
    script = """(() => {
      const [expand, collapse] = tree.querySelectorAll('button');
      const result = {};
      rowOf(item('model')).click();
      result.opened = rows().filter((path) => path.startsWith('model.'));
      rowOf(item('model')).click();
      result.closed = rows().filter((path) => path.startsWith('model.'));
      expand.click();
      result.expanded = rows().length;
      result.all = says();
      collapse.click();
      result.collapsed = rows();
      let copied;
      navigator.clipboard.writeText = (text) => { copied = text; };
      item('model.head').querySelector('.name').click();
      result.copied = copied;
      search('head');
      tree.querySelector('[data-to="model.embedding"]').click();
      result.followed = {open: rows().includes('model.embedding'), searched: input.value,
        flash: rowOf(item('model.embedding')).matches('.flash')};
      return result;
    })()"""
    found = browse(html(compose(["config:llama3_1b"])), script, tmp_path)
    assert found["opened"] == [
        "model.embedding", "model.layers[0:16]", "model.norm", "model.head",
        "model.positions", "model.multi_token",
    ]  # fmt: skip
    assert found["closed"] == []
    assert found["all"] == f"{found['expanded']} rows"
    assert found["collapsed"] == [""]
    assert found["copied"] == "model.head"
    assert found["followed"] == {"open": True, "searched": "", "flash": True}


@needs_browser
def test_several_trees_in_one_page_are_independent(tmp_path):
    rows = tree_html(whole()).count("data-path=")
    both = page(tree_html(whole()) + tree_html(whole()) + "<p class='row'>plain</p>", title="two")
    script = """(() => {
      search('rate');
      const [first, second] = document.querySelectorAll('.nanigpt-tree');
      const style = getComputedStyle(document.querySelector('p.row'));
      return [first.querySelectorAll('.hit').length, second.querySelectorAll('.hit').length,
        second.querySelector('.count').textContent, style.paddingLeft];
    })()"""
    assert browse(both, script, tmp_path) == [2, 0, f"{rows} rows", "0px"]


@needs_browser
def test_the_page_is_not_blank_in_either_theme(llama, tmp_path):
    light, dark = (Image.open(screenshot(llama, tmp_path, dark=d)).convert("RGB") for d in (0, 1))
    for picture in (light, dark):
        assert len(picture.getcolors(maxcolors=1 << 20)) > 50
    middle = (900, 200)  # the tree's ground, right of its text
    assert min(light.getpixel(middle)) > 240 and max(dark.getpixel(middle)) < 60

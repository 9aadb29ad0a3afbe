"""Properties of random DAGs. `--hypothesis-profile=explore` tries more of them, and new ones."""

import copy

import fiddle as fdl
import pytest
from fiddle import daglish
from hypothesis import given
from hypothesis import strategies as st

from nanigpt.config.paths import arguments
from nanigpt.config.record import names
from nanigpt.config.record.file import differences, dump, load
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.view.diff import render as render_diff
from nanigpt.config.view.edit import to_fiddler
from nanigpt.config.view.show import render
from nanigpt.config.view.source import to_python
from tests.config.dags import Box, dags, edited, tags_of


@pytest.fixture(autouse=True, scope="module")
def recordable():
    """A record may name the components of these tests."""
    known = names.extension_packages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "extension_packages", lambda: known | {"tests"})
        yield


def same(one: fdl.Buildable, other: fdl.Buildable) -> bool:
    """Equal in values, classes, sharing of nodes and tags. (Fiddle's own `==` also asks whether
    equal tuples are one object.)"""
    return (
        canonical(one) == canonical(other)
        and fingerprint(one) == fingerprint(other)
        and tags_of(one) == tags_of(other)
    )


def execute(source: str, name: str):
    scope = {}
    exec(compile(source.replace("@fiddler\n", ""), "<source>", "exec"), scope)
    return scope[name]


@given(dags())
def test_a_record_loads_back_equal(tmp_path_factory, cfg):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(dump(cfg))
    assert same(load(path), cfg)


@given(dags())
def test_python_builds_an_equal_config(cfg):
    assert same(execute(to_python(cfg), "config")(), cfg)


@given(dags())
def test_the_fingerprint_is_of_the_content(cfg):
    other = copy.deepcopy(cfg)
    for node, _ in daglish.iterate(other):
        if isinstance(node, fdl.Buildable):
            for name, value in arguments(node).items():
                if isinstance(value, dict):
                    value = dict(reversed(value.items()))
                if not isinstance(value, bool) and value == 1:
                    value = 1.0 if isinstance(value, int) else 1
                setattr(node, name, value)  # defaults are written out
    assert fingerprint(other) == fingerprint(cfg)


@given(st.data())
def test_the_fingerprint_tells_any_change(data):
    cfg = data.draw(dags())
    other = data.draw(edited(cfg))
    assert (fingerprint(other) == fingerprint(cfg)) == (canonical(other) == canonical(cfg))


def canonical(cfg: fdl.Buildable) -> str:
    """All that a config builds, as text: nodes are numbered, so that sharing shows."""
    numbers: dict[int, int] = {}

    def text(value) -> str:
        if isinstance(value, fdl.Buildable):
            if id(value) in numbers:
                return f"#{numbers[id(value)]}"
            numbers[id(value)] = len(numbers)
            inside = ",".join(f"{n}={text(v)}" for n, v in sorted(arguments(value).items()))
            return f"{type(value).__name__}:{fdl.get_callable(value).__name__}({inside})"
        if isinstance(value, dict):
            return "{" + ",".join(f"{k!r}:{text(value[k])}" for k in sorted(value)) + "}"
        if isinstance(value, (list, tuple)):
            return f"{type(value).__name__}({','.join(map(text, value))})"
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1 and 1.0 build the same
        return repr(value)

    return text(cfg)


@given(st.data())
def test_the_difference_as_a_fiddler_turns_one_into_the_other(data):
    old = data.draw(dags())
    new = data.draw(st.one_of(edited(old), dags()))
    before = copy.deepcopy(old)
    edit = execute(to_fiddler(old, new), "edit")
    edit(before)
    assert same(before, new)


@given(st.data())
def test_a_difference_is_told_where_there_is_one(data):
    cfg = data.draw(dags())
    other = data.draw(edited(cfg))
    told = render_diff(cfg, other)
    assert bool(told) == (fingerprint(cfg) != fingerprint(other)), told
    assert render_diff(cfg, copy.deepcopy(cfg)) == ""


@given(st.data())
def test_sharing_of_lists_is_content(tmp_path_factory, data):
    cfg = data.draw(dags())
    other = copy.deepcopy(cfg)
    value = data.draw(st.sampled_from([[], [1], {"k": 1}, [[2]]]))
    # Listed before any is edited: an edit may take nodes out of the config.
    nodes, others = (
        [n for n, _ in daglish.iterate(each) if isinstance(n, fdl.Buildable)]
        for each in (cfg, other)
    )
    places = st.tuples(st.integers(0, len(nodes) - 1), st.sampled_from("abc"))
    for i, name in data.draw(st.sets(places, min_size=1, max_size=3)):
        for of, copied in ((nodes, False), (others, data.draw(st.booleans()))):
            inner = copy.deepcopy(value) if copied else value
            setattr(of[i], name, data.draw(st.sampled_from([inner, (inner,), {"x": inner}])))
    told = differences(cfg, other)
    assert bool(told) == (fingerprint(cfg) != fingerprint(other)), told
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(dump(other))
    assert fingerprint(load(path)) == fingerprint(other)
    assert differences(load(path), other) == []


def test_a_part_below_one_that_is_held_from_outside_is_written_once(tmp_path):
    """The inner box is held twice below the element, once of them through a box of the root."""
    inner = fdl.Config(Box, c=[])
    shared = fdl.Config(Box, a=inner)
    cfg = fdl.Config(Box, a=[fdl.Config(Box, a=shared, b=inner)], b=[shared])
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    loaded = load(path)
    assert fingerprint(loaded) == fingerprint(cfg)
    assert loaded.a[0].b is loaded.b[0].a
    assert fingerprint(execute(to_python(cfg), "config")()) == fingerprint(cfg)


@given(dags())
def test_every_format_shows_every_config(cfg):
    for format in ("tree", "flat", "json"):
        assert render(cfg, format=format)
    assert render(cfg, why=True)

"""Paths with slices stand for the paths that were folded, and for no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanigpt.config.fold import Position, fold, path_text
from nanigpt.config.paths import parse_path


def texts(paths):
    return [path_text(path) for path in fold(paths)]


def layers(indices, *rest):
    return [("layers", i, *rest) for i in indices]


@pytest.mark.parametrize(
    "indices, expected",
    [
        (range(126), ["[0:126]"]),
        ([3], ["[3]"]),
        ([3, 7], ["[3]", "[7]"]),
        ([3, 4], ["[3:5]"]),
        (range(1, 48, 4), ["[1:46:4]"]),
        ([0, 1, 2, 3, 8, 9, 10, 11], ["[0:4]", "[8:12]"]),
        ([0, 1, 2, 4, 5, 6, 8, 9, 10], ["[0:11:2]", "[1:10:4]"]),
        ([5, 3, 4, 4], ["[3:6]"]),
    ],
)
def test_runs(indices, expected):
    assert texts(layers(indices, "n")) == [f"layers{e}.n" for e in expected]


def test_nested_indices():
    whole = [("layers", i, "experts", j) for i in range(4) for j in range(3)]
    assert texts(whole) == ["layers[0:4].experts[0:3]"]
    assert texts([*whole, ("layers", 4, "experts", 0)]) == [
        "layers[0:4].experts[0:3]",
        "layers[4].experts[0]",
    ]


def test_elements_that_no_slice_chooses():
    assert texts([("a", ("x",)), ("a", ("y",))]) == ["a['x']", "a['y']"]
    assert texts([("a", (0,)), ("a", (1,))]) == ["a[0]", "a[1]"]
    assert texts([(Position(0),), (Position(1),), (Position(2),)]) == ["[0]", "[1]", "[2]"]
    assert texts([("a", ("x",), i) for i in range(3)]) == ["a['x'][0:3]"]
    assert texts([()]) == [""]
    assert texts([]) == []


@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=40))
def test_folded_paths_match_the_same_elements(pairs):
    paths = [("a", i, "b", j) for i, j in pairs]
    matched = []
    for text in texts(paths):
        _, first, _, second = parse_path(text)
        for i in range(20)[first] if isinstance(first, slice) else [first]:
            for j in range(20)[second] if isinstance(second, slice) else [second]:
                matched.append((i, j))
    assert sorted(matched) == sorted(pairs)  # each once

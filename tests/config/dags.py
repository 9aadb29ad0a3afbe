"""Random DAGs and random edits of them, for property tests."""

import copy
import enum
from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish
from hypothesis import strategies as st

from nanigpt.pure import pure


class Knob(fdl.Tag):
    """A tag."""


class Dial(fdl.Tag):
    """Another."""


class Side(enum.Enum):
    LEFT = "l"
    RIGHT = "r"


class Box:
    def __init__(self, *, a: Any = None, b: Any = (1, 2), c: Any = 1.0, d: Any = None):
        self.values = (a, b, c, d)


class Crate:
    def __init__(self, *, a: Any = "x", b: Any = None, c: Any = None, d: Any = 0):
        self.values = (a, b, c, d)


@pure
def pack(*, a: Any = None, b: Any = None, c: Any = None, d: Any = None) -> tuple:
    return a, b, c, d


ARGUMENTS = "abcd"
_WORDS = st.text(alphabet="ab'\"\\\n é[]", max_size=4)
_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=False),
    _WORDS,
    st.sampled_from([torch.float32, torch.bfloat16, Side.LEFT, Side.RIGHT, Box, pack]),
)
VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_WORDS, inner, max_size=3),
    ),
    max_leaves=4,
)


@st.composite
def dags(draw) -> fdl.Config:
    """A root that holds nodes made before it, some of them several times."""
    nodes: list[fdl.Buildable] = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from([fdl.Config, fdl.Config, fdl.Partial, fdl.ArgFactory]))
        node = kind(draw(st.sampled_from([Box, Crate, pack])))
        _fill(draw, node, nodes)
        nodes.append(node)
    root = fdl.Config(Box)
    _fill(draw, root, nodes)
    if nodes:
        root.d = [draw(_below(nodes)) for _ in range(draw(st.integers(0, 4)))]
        if draw(st.booleans()):  # equal neighbours
            root.d += [copy.deepcopy(nodes[-1]) for _ in range(draw(st.integers(0, 3)))]
    return root


@st.composite
def edited(draw, cfg: fdl.Config) -> fdl.Config:
    """A copy with some edits: values, nodes, classes, sharing, lengths, tags."""
    cfg = copy.deepcopy(cfg)
    for _ in range(draw(st.integers(1, 3))):
        nodes = [n for n, _ in daglish.iterate(cfg) if isinstance(n, fdl.Buildable)]
        node = draw(st.sampled_from(nodes))
        name = draw(st.sampled_from(ARGUMENTS))
        given = fdl.ordered_arguments(node)
        verb = draw(st.sampled_from(["value", "node", "share", "delete", "tag", "list"]))
        later = nodes[: nodes.index(node)]  # the walk meets parents last, so none of these holds it
        if verb == "value":
            setattr(node, name, draw(VALUES))
        elif verb == "node":
            setattr(node, name, fdl.Config(draw(st.sampled_from([Box, Crate]))))
        elif verb == "share" and later:
            setattr(
                node,
                name,
                draw(st.sampled_from([n for n in later if not _holds(n, node)] or [None])),
            )
        elif verb == "delete" and name in given:
            delattr(node, name)
        elif verb == "tag":
            change = fdl.remove_tag if Knob in fdl.get_tags(node, name) else fdl.add_tag
            change(node, name, Knob)
        elif verb == "list" and isinstance(cfg.d, list):
            cut = draw(st.integers(0, len(cfg.d)))
            cfg.d = [*cfg.d[:cut], fdl.Config(Crate), *cfg.d[cut + draw(st.integers(0, 2)) :]]
    return cfg


def tags_of(cfg: fdl.Buildable) -> list[tuple[str, dict]]:
    """Every node's tags, by path."""
    return [
        (
            daglish.path_str(path),
            {name: tags for name, tags in node.__argument_tags__.items() if tags},
        )
        for node, path in daglish.iterate(cfg)
        if isinstance(node, fdl.Buildable)
    ]


def _fill(draw, node: fdl.Buildable, nodes: list[fdl.Buildable]) -> None:
    for name in draw(st.sets(st.sampled_from(ARGUMENTS))):
        setattr(node, name, draw(st.one_of(VALUES, _below(nodes)) if nodes else VALUES))
    for name in draw(st.sets(st.sampled_from(ARGUMENTS), max_size=1)):
        fdl.add_tag(node, name, draw(st.sampled_from([Knob, Dial])))


def _below(nodes: list[fdl.Buildable]) -> st.SearchStrategy:
    """A node, or a container of some."""
    node = st.sampled_from(nodes)
    return st.one_of(
        node,
        st.lists(node, max_size=3),
        st.lists(node, max_size=2).map(tuple),
        st.dictionaries(_WORDS, node, max_size=2),
        st.lists(st.lists(node, max_size=2), max_size=2),
    )


def _holds(node: fdl.Buildable, other: fdl.Buildable) -> bool:
    return any(n is other for n, _ in daglish.iterate(node))

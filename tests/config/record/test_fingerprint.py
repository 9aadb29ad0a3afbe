"""Equal where the run is, different where anything is."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import pytest
import torch

from nanigpt.config.compose.flag import compose
from nanigpt.config.record.file import differences, dump
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.registry import recipes
from nanigpt.errors import UsageError
from nanigpt.models.init import Constant
from tests.config.components import (
    Anything,
    Color,
    Defaults,
    Mood,
    Part,
    Point,
    Rate,
    Side,
    Something,
    Whole,
    pair,
    whole,
)
from tests.support import tiny


def test_how_a_config_is_written_does_not_matter():
    plain = fdl.Config(Whole, name="n", parts=[], table={"a": 1, "b": 2})
    spelled = fdl.Config(Whole, table={"b": 2, "a": 1}, count=1, limit=None, parts=[], name="n")
    assert fingerprint(plain) == fingerprint(spelled)
    part = fdl.Config(Part, rate=1)
    assert fingerprint(part) == fingerprint(fdl.Config(Part, rate=1.0, size=3))
    tagged = fdl.Config(Part, rate=1)
    fdl.remove_tag(tagged, "rate", Rate)
    assert fingerprint(part) == fingerprint(tagged)


@pytest.mark.parametrize(
    "edit",
    [
        lambda cfg: setattr(cfg, "name", "v"),
        lambda cfg: setattr(cfg, "count", 2),
        lambda cfg: setattr(cfg, "exact", True),
        lambda cfg: setattr(cfg, "count", True),
        lambda cfg: setattr(cfg, "limit", 0),
        lambda cfg: setattr(cfg, "path", "None"),
        lambda cfg: setattr(cfg, "dtype", torch.bfloat16),
        lambda cfg: setattr(cfg, "pair", [0.9, 0.95]),
        lambda cfg: setattr(cfg, "pair", (0.95, 0.9)),
        lambda cfg: setattr(cfg.parts[1], "rate", 0.5000000001),
        lambda cfg: cfg.parts.__setitem__(2, fdl.Config(Part)),  # equal, no longer shared
        lambda cfg: cfg.parts.__setitem__(1, cfg.parts[0]),  # equal, now shared
        lambda cfg: cfg.parts.__setitem__(1, fdl.Partial(Part)),
        lambda cfg: cfg.table.update(b=1),
        lambda cfg: cfg.table.update(a=2),
    ],
)
def test_any_change_of_what_is_built_matters(edit):
    cfg = whole()
    edit(cfg)
    assert fingerprint(cfg) != fingerprint(whole())


ONE, TWO = [1], {"k": 1}


@pytest.mark.parametrize(
    "a, b",
    [
        ([1], (1,)),
        ({1}, frozenset({1})),
        ((1, 2), Point(1, 2)),
        ((1, 2), (True, 2)),
        ({"k": 1}, {"k": True}),
        (1, Side.LEFT),
        ("calm", Mood.CALM),
        (Color.RED, Color.BLUE),
        (math.nan, math.inf),
        (1 + 2j, 1 + 3j),
        (torch.device("cpu"), torch.device("cuda:0")),
        (torch.device("cpu"), "cpu"),
        (Path("a"), Path("b")),
        (Path("a"), "a"),
        (torch.contiguous_format, torch.channels_last),
        (torch.relu, torch.tanh),
        (torch.relu, torch.nn.functional.relu),
        (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d),
        (Anything.made, Something.made),
        (functools.partial(pair, 1), functools.partial(pair, 2)),
        (functools.partial(pair, b=1), functools.partial(pair, b=2)),
        ([fdl.Config(Part)], (fdl.Config(Part),)),
        ([fdl.Config(Part)], {0: fdl.Config(Part)}),
        ([ONE, [1]], [ONE, ONE]),
        ([TWO, {"k": 1}], [TWO, TWO]),
    ],
)
def test_what_builds_otherwise_is_another_and_told(a, b):
    for one, other in ((a, b), (b, a)):
        old, new = fdl.Config(Anything, a=one), fdl.Config(Anything, a=other)
        assert fingerprint(old) != fingerprint(new)
        assert differences(old, new)
    assert fingerprint(fdl.Config(Anything, a=a)) == fingerprint(fdl.Config(Anything, a=a))
    assert differences(fdl.Config(Anything, a=a), fdl.Config(Anything, a=a)) == []


def test_a_list_of_two_arguments_is_theirs_together():
    shared = [1]
    together, apart = (fdl.Config(Anything, a=shared, b=b) for b in (shared, [1]))
    for cfg in (together, apart):
        built = fdl.build(cfg)
        assert (built.a is built.b) == (cfg is together)
    assert fingerprint(together) != fingerprint(apart)
    assert differences(apart, together) == ["b: [1] -> (the list a)"]
    deeper = fdl.Config(Anything, a=[shared], b=[shared])
    assert differences(fdl.Config(Anything, a=[[1]], b=[[1]]), deeper) == [
        "b[0]: (absent) -> (the list a[0])"
    ]


def test_equal_content_is_no_difference():
    nan, other = fdl.Config(Anything, a=math.nan), fdl.Config(Anything, a=float("nan"))
    assert fingerprint(nan) == fingerprint(other)
    assert differences(nan, other) == []
    one, same = (fdl.Config(Anything, a=functools.partial(pair, [1], b=2)) for _ in range(2))
    assert fingerprint(one) == fingerprint(same)
    assert differences(one, same) == []


def test_a_default_without_content_is_known_by_its_class():
    cfg = fdl.Config(Defaults)
    assert fingerprint(cfg) == fingerprint(fdl.Config(Defaults))
    assert fingerprint(cfg) != fingerprint(fdl.Config(Defaults, b=3))
    assert differences(cfg, fdl.Config(Defaults)) == []
    with pytest.raises(UsageError, match="a: <object object at .* has no content to compare"):
        fingerprint(fdl.Config(Defaults, a=object()))


def test_a_method_of_an_object_has_no_content():
    with pytest.raises(UsageError, match="a: <bound method .* cannot be named"):
        fingerprint(fdl.Config(Anything, a=Anything().forget))


def test_what_nests_too_deeply_is_told():
    cfg = fdl.Config(Anything)
    for _ in range(500):
        cfg = fdl.Config(Anything, a=cfg)
    for tell in (fingerprint, dump):
        with pytest.raises(UsageError, match="nests deeper"):
            tell(cfg)


def test_recipes_differ():
    prints = {name: fingerprint(compose([f"config:{name}"])) for name in recipes()}
    assert len(set(prints.values())) == len(prints)


def test_other_processes_agree():
    code = """
from nanigpt.config.record.fingerprint import fingerprint
from tests.config.components import whole
from tests.support import tiny
print(fingerprint(whole()), fingerprint(tiny()))
"""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split() == [fingerprint(whole()), fingerprint(tiny())]


def test_what_has_no_content_is_named_with_its_path():
    cfg = whole()
    cfg.parts[1].rate = lambda: 0
    with pytest.raises(
        UsageError, match=r"parts\[1\].rate: a lambda \(test_fingerprint.py:\d+\) has no name"
    ):
        fingerprint(cfg)
    cfg.parts[1].rate = Constant(value=1.0)
    with pytest.raises(UsageError, match=r"parts\[1\].rate: .* has no content to compare"):
        fingerprint(cfg)

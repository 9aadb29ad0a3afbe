"""Sweeps over DAGs that need have nothing to do with training."""

import copy
import math

import fiddle as fdl
import numpy as np
import pytest
import torch

from nanigpt.config.compose.axes import axis_label, parse_axes
from nanigpt.config.compose.space import Axis, extremes, points
from nanigpt.config.compose.sweep import (
    Integers,
    LogUniform,
    Uniform,
    When,
    sweep,
    sweep_trials,
)
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.provenance import explain
from nanigpt.errors import UsageError
from nanigpt.tags import LearningRate
from tests.config.components import Color, Part, Rate, whole
from tests.support import tiny


def plain(spaces):
    """Axes that are neither combined nor conditional."""
    return [Axis((key,), space) for key, space in spaces.items()]


def test_a_grid_is_every_combination_in_order():
    base = tiny()
    before = copy.deepcopy(base)
    configs = list(sweep(base, {LearningRate: [1e-4, 3e-4], "optimizer.betas[1]": [0.95, 0.99]}))
    assert [(c.optimizer.lr, c.optimizer.betas) for c in configs] == [
        (1e-4, (0.9, 0.95)),
        (1e-4, (0.9, 0.99)),
        (3e-4, (0.9, 0.95)),
        (3e-4, (0.9, 0.99)),
    ]
    assert base == before
    configs[0].model.layers[0].attention.n_heads = 3
    assert configs[1].model == base.model


def test_a_config_says_that_the_sweep_set_it():
    cfg = next(sweep(whole(), {Rate: [0.25]}))
    assert explain(cfg.parts[0], "rate").startswith("sweep of tag:Rate")
    assert cfg.parts[0] is cfg.parts[2]  # sharing is kept


def test_python_values_stand_as_they_are():
    """None of them goes through text."""
    given = [torch.int8, torch.bfloat16]
    assert [cfg.dtype for cfg in sweep(whole(), {"dtype": given})] == given
    assert [cfg.parts[0].rate for cfg in sweep(whole(), {Rate: [math.inf, 1]})] == [math.inf, 1.0]
    assert [cfg.pair for cfg in sweep(whole(), {"pair": [[1, 2.0]]})] == [(1.0, 2.0)]
    assert [cfg.color for cfg in sweep(whole(), {"color": [Color.RED, None]})] == [Color.RED, None]
    for axes, told in (
        ({"pair": [(1, "x")]}, r"\[1\]='x': expected float, not str"),
        ({"pair": [(1,)]}, "expected 2 elements, not 1"),
        ({"names": [3]}, r"expected list\[str\] or None, not int"),
        ({"mode": ["medium"]}, "expected one of 'fast', 'slow', not 'medium'"),
    ):
        with pytest.raises(UsageError, match=told):
            list(sweep(whole(), axes))


def test_elements_may_be_configs():
    base = whole()
    (cfg,) = sweep(base, {"parts[*]": [fdl.Config(Part, size=7)]})
    assert [part.size for part in cfg.parts] == [7, 7, 7]
    assert len(set(map(id, cfg.parts))) == 3
    assert base == whole()


def test_values_may_be_of_any_kind():
    given = {
        "dtype": [torch.bfloat16],
        "path": ["none", None],
        "mode": ["slow"],
        "count": np.array([2, 3]),
        "table['a']": [5],
    }
    part = fdl.Config(Part, size=7)
    trials = list(sweep_trials(whole(), given | {"parts": [[part], []]}))
    assert len(trials) == 2 * 2 * 2
    assert [t.values["path"] for t in trials] == ["none"] * 4 + [None] * 4
    for trial in trials:
        cfg = trial.cfg
        assert (cfg.dtype, cfg.mode, cfg.table) == (torch.bfloat16, "slow", {"a": 5})
        assert (cfg.path, cfg.count) == (trial.values["path"], trial.values["count"])
        assert type(cfg.count) is int
    assert trials[0].cfg.parts == [part]
    assert trials[0].cfg.parts[0] is not part
    assert trials[1].cfg.parts == []


def test_points_that_give_the_same_config_are_one():
    configs = list(sweep(whole(), {Rate: [1, 1.0, 0.5], "count": [1, 1]}))
    assert [c.parts[0].rate for c in configs] == [1.0, 0.5]
    assert len({fingerprint(c) for c in configs}) == 2


def test_a_draw_depends_on_seed_number_and_axis_only():
    axes = plain({"tag:Rate": LogUniform(1e-5, 1e-2), "set:count": Integers(1, 9)})
    draws = list(points(axes, trials=5, seed=3))
    assert draws == list(points(axes, trials=9, seed=3))[:5]
    assert [d["set:count"] for d in draws] == [
        d["set:count"] for d in points(axes[1:], trials=5, seed=3)
    ]
    assert draws != list(points(axes, trials=5, seed=4))
    # In Python and on the command line alike; from one release to the next.
    configs = sweep(whole(), {Rate: LogUniform(1e-5, 1e-2)}, trials=5, seed=3)
    assert [c.parts[0].rate for c in configs] == [d["tag:Rate"] for d in draws]
    assert draws[0] == {"tag:Rate": 0.000855904, "set:count": 8}


@pytest.mark.parametrize(
    "space, middle",
    [(Uniform(0.0, 10.0), 5.0), (LogUniform(1e-6, 1e-2), 1e-4), (Integers(1, 4), 3), ((1, 2), 2)],
)
def test_draws_fill_the_space(space, middle):
    drawn = [p["x"] for p in points(plain({"x": space}), trials=400)]
    assert 0.4 < sum(x < middle for x in drawn) / 400 < 0.6
    if isinstance(space, tuple):
        assert set(drawn) == {1, 2}
    elif isinstance(space, Integers):
        assert set(drawn) == {1, 2, 3, 4}
    else:
        assert space.low <= min(drawn) < max(drawn) <= space.high


def test_extremes_hold_every_value_once_at_least():
    axes = plain({"a": ("x", "y", "z"), "b": Uniform(1, 2), "c": Integers(3, 4)})
    found = list(extremes(axes))
    assert found == [
        {"a": "x", "b": 1, "c": 3},
        {"a": "y", "b": 2, "c": 4},
        {"a": "z", "b": 2, "c": 4},
    ]


@pytest.mark.parametrize(
    "axes, options, message",
    [
        ({"lr": [1]}, {}, "Whole.* has no 'lr'"),
        ({"count": [1, "x"]}, {}, "count='x': expected int"),
        ({LearningRate: [1]}, {}, "no argument of this config has the tag 'LearningRate'"),
        ({Rate: ["fast"]}, {}, "rate='fast': expected float"),
        ({"count": "12"}, {}, "set:count: expected a list of values or a range, not '12'"),
        ({"count": 12}, {}, "expected a list of values"),
        ({"count": []}, {}, "set:count: expected at least one value"),
        ({Rate: Uniform(0, 1)}, {}, "tag:Rate: a grid needs a list"),
        ({Rate: [1]}, {"trials": 0}, "trials=0: expected at least 1"),
        ({}, {}, "something to vary"),
        ({"parts[0].size.x": [fdl.Config(Part)]}, {}, "size"),
    ],
)
def test_a_mistake_is_told_before_the_first_config(axes, options, message):
    with pytest.raises(UsageError, match=message):
        sweep(whole(), axes, **options)


def scaled(cfg, rate):
    """A fiddler with one value."""
    cfg.parts[0].rate = rate


def test_axes_of_python_may_be_fiddlers():
    configs = list(sweep(whole(), {scaled: [0.25, 0.5], "count": [1, 2]}))
    assert [(c.parts[0].rate, c.count) for c in configs] == [
        (0.25, 1),
        (0.25, 2),
        (0.5, 1),
        (0.5, 2),
    ]
    assert explain(configs[0].parts[0], "rate").startswith("sweep of fiddler:scaled (")


def test_values_go_together_and_axes_have_conditions():
    axes = {
        (Rate, "count"): [(0.25, 1), (0.5, 2)],
        "mode": When("count", 2, ["fast", "slow"]),
        "path": When("mode", "slow", ["x", "y"]),
    }
    trials = list(sweep_trials(whole(), axes))
    assert [tuple(t.values.values()) for t in trials] == [
        (0.25, 1),
        (0.5, 2, "fast"),
        (0.5, 2, "slow", "x"),
        (0.5, 2, "slow", "y"),
    ]
    assert [(t.cfg.parts[0].rate, t.cfg.count, t.cfg.path) for t in trials][3] == (0.5, 2, "y")
    drawn = [tuple(t.values.values()) for t in sweep_trials(whole(), axes, trials=40)]
    assert set(drawn) == {tuple(t.values.values()) for t in trials}


@pytest.mark.parametrize(
    "axes, message",
    [
        ({(Rate, "count"): [1, 2]}, "zip.tag:Rate, set:count.: expected a list of tuples of 2"),
        ({(Rate, "count"): [(1, 2, 3)]}, "expected a list of tuples of 2"),
        ({(Rate, "count"): Uniform(0, 1)}, "expected a list of tuples of 2"),
        ({"mode": When("count", 2, ["fast"])}, "set:count=2: .* no earlier axis varies it"),
        ({"count": [1], "mode": When("count", 2, ["fast"])}, "a value of an earlier list: 1$"),
        ({("count", "mode"): [(1, "fast")], "count": [3]}, "set:count is varied twice"),
    ],
)
def test_a_wrong_combination_is_refused(axes, message):
    with pytest.raises(UsageError, match=message):
        sweep(whole(), axes)


def edits(texts, **options):
    axes = parse_axes(texts)
    return [axes.edits(point) for point in points(axes.axes, **options)]


def test_an_axis_is_a_directive_with_a_list_in_it():
    assert edits(["config:[a,b(x=1)]", "tag:Rate=[1,2]"]) == [
        ["config:a", "tag:Rate=1"],
        ["config:a", "tag:Rate=2"],
        ["config:b(x=1)", "tag:Rate=1"],
        ["config:b(x=1)", "tag:Rate=2"],
    ]
    assert edits(["config:a(x=[1,2], y=z)"]) == [["config:a(x=1, y=z)"], ["config:a(x=2, y=z)"]]
    assert edits(["fiddler:f(1,[2,3],k=[4])"]) == [
        ["fiddler:f(1, 2, k=4)"],
        ["fiddler:f(1, 3, k=4)"],
    ]
    assert edits(["fiddler:[muon,f(8bit),none]"]) == [["fiddler:muon"], ["fiddler:f(8bit)"], []]
    assert edits(["fiddler:f([[1,2],[3]])"]) == [["fiddler:f([1,2])"], ["fiddler:f([3])"]]
    assert edits(["run:[runs/a,runs/b]"]) == [["run:runs/a"], ["run:runs/b"]]
    (drawn,) = edits(["config:a(x=int(5,6))"], trials=1)
    assert drawn in (["config:a(x=5)"], ["config:a(x=6)"])


def test_the_base_stands_first():
    assert edits(["tag:Rate=[1]", "config:[a]"]) == [["config:a", "tag:Rate=1"]]


def test_two_lists_of_fiddlers_are_two_axes():
    texts = ["fiddler:[muon,none]", "fiddler:[f(8bit),none]"]
    assert edits(texts) == [
        ["fiddler:muon", "fiddler:f(8bit)"],
        ["fiddler:muon"],
        ["fiddler:f(8bit)"],
        [],
    ]
    labels = [axis_label(key) for axis in parse_axes(texts).axes for key in axis.keys]
    assert labels == ["fiddler", "fiddler2"]


@pytest.mark.parametrize(
    "text, label",
    [
        ("tag:Rate=[1]", "Rate"),
        ("set:optimizer.betas[1]=[1]", "optimizer.betas[1]"),
        ("config:[a]", "config"),
        ("config:a(x=[1])", "a.x"),
        ("fiddler:depth([1])", "depth"),
        ("fiddler:f(1,[2])", "f[1]"),
    ],
)
def test_an_axis_has_a_short_name(text, label):
    assert [axis_label(key) for key in parse_axes([text]).axes[0].keys] == [label]


def test_a_zip_gives_values_together():
    assert edits(["zip(config:a(x=[1,2],y=[3,4]), tag:Rate=[5,6])", "set:b=[7,8]"]) == [
        ["config:a(x=1, y=3)", "tag:Rate=5", "set:b=7"],
        ["config:a(x=1, y=3)", "tag:Rate=5", "set:b=8"],
        ["config:a(x=2, y=4)", "tag:Rate=6", "set:b=7"],
        ["config:a(x=2, y=4)", "tag:Rate=6", "set:b=8"],
    ]


def test_a_conditional_axis_exists_in_some_trials():
    """The same key may have other values on another condition."""
    texts = [
        "fiddler:[muon,none]",
        "when(fiddler:muon, tag:Rate=[1,2])",
        "when(fiddler:none, tag:Rate=[3])",
        "when(tag:Rate=2, zip(set:a=[4,5], set:b=[6,7]))",
    ]
    assert edits(texts) == [
        ["fiddler:muon", "tag:Rate=1"],
        ["fiddler:muon", "tag:Rate=2", "set:a=4", "set:b=6"],
        ["fiddler:muon", "tag:Rate=2", "set:a=5", "set:b=7"],
        ["tag:Rate=3"],
    ]
    drawn = {tuple(e) for e in edits(texts, trials=60)}
    assert drawn == {tuple(e) for e in edits(texts)}
    axes = parse_axes(texts)
    covered = {tuple(axes.edits(point)) for point in extremes(axes.axes)}
    assert covered == drawn


@pytest.mark.parametrize(
    "texts, message",
    [
        (["config:[a]", "config:b(x=[1])"], "config:b(x=[1]): a trial has one base"),
        (["set:a=[1]", "when(set:a=1, config:[b])"], "every trial needs a base"),
        (["set:a=[1,2]", "when(set:a=3, set:b=[1])"], "no list of an earlier axis gives set:a=3"),
        (["fiddler:[muon]", "when(fiddler:muo, set:b=[1])"], "did you mean 'fiddler:muon'?"),
        (["set:a=int(1,2)", "when(set:a=1, set:b=[1])"], "no list of an earlier axis gives"),
        (["set:a=[1,2]", "when(set:a=1, set:a=[3])"], "set:a is varied twice"),
        (["set:a=[1]", "zip(when(set:a=1,set:b=[1]),set:c=[1])"], "zip takes plain axes"),
        (["fiddler:f([1])", "fiddler:f([2])"], "fiddler:f is varied twice"),
    ],
)
def test_axes_that_do_not_fit_each_other(texts, message):
    with pytest.raises(UsageError) as caught:
        parse_axes(texts)
    assert str(caught.value).startswith(f"--sweep={texts[1]}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("make, arguments", [
    (Uniform, (2.0, 1.0)),
    (Uniform, (0.0, float("inf"))),
    (LogUniform, (0.0, 1.0)),
    (LogUniform, (-1.0, 1.0)),
    (Integers, (3, 3)),
])  # fmt: skip
def test_a_range_must_have_an_inside(make, arguments):
    with pytest.raises(UsageError, match="expected"):
        make(*arguments)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("tag:Rate=[1e-4, 3e-4]", ("tag:Rate", ("1e-4", "3e-4"))),
        ("set:a.b[1]=[none,bf16,2**20]", ("set:a.b[1]", ("none", "bf16", "2**20"))),
        (
            "set:s=[@linear(warmup_steps=10, x='a,b'),@cosine]",
            ("set:s", ("@linear(warmup_steps=10, x='a,b')", "@cosine")),
        ),
        ("set:pair=[(0.9,0.95),(0.9,0.99)]", ("set:pair", ("(0.9,0.95)", "(0.9,0.99)"))),
        ("set:names=[[a,b],[]]", ("set:names", ("[a,b]", "[]"))),
        ("set:path=[x=1.txt, 'a, b']", ("set:path", ("x=1.txt", "'a, b'"))),
        (r"""set:path=['a\', [b\\', "c\""]""", ("set:path", (r"'a\', [b\\'", r'"c\""'))),
        ("tag:Rate=loguniform(2**-10, 1e-2)", ("tag:Rate", LogUniform(2**-10, 1e-2))),
        ("tag:Rate=uniform(0,1)", ("tag:Rate", Uniform(0.0, 1.0))),
        ("set:count=int(1,1e3)", ("set:count", Integers(1, 1000))),
    ],
)
def test_axes_of_the_command_line(text, expected):
    key, space = expected
    assert parse_axes([text]).axes == plain({key: space})


@pytest.mark.parametrize(
    "text, message",
    [
        ("LearningRate=[1]", "expected tag:TAG="),
        ("tag:Rate", "expected tag:TAG="),
        ("tag:=[1]", "expected tag:TAG="),
        ("fiddler:f=[1]", "expected tag:TAG="),
        ("fiddler:f", "expected tag:TAG="),
        ("fiddler:f(1)", "fiddler:f(1) has one value of each argument, which --config sets"),
        ("config:f(x=[1,2)", "not closed"),
        ("config:f(x=loguniform(0,1))", "expected 0 < low"),
        (
            "zip(tag:Rate=[1,2])",
            "zip needs two or more lists of equal length and no range; it has lists of length 2",
        ),
        ("zip(tag:Rate=[1,2],set:count=[1])", "lists of length 2, 1"),
        ("zip(tag:Rate=[1,2],set:count=int(1,2))", "lists of length 2"),
        ("zip(tag:Rate=[1],zip(set:a=[1],set:b=[2]))", "zip takes plain axes"),
        ("zip(tag:Rate=[1,2],tag:Rate=[1,2])", "tag:Rate is varied twice"),
        ("zip(tag:Rate=[1,2]", "expected zip(...)"),
        ("when(tag:Rate=1)", "expected when(DIRECTIVE, AXIS), not 1 items"),
        ("when(tag:Rate=1, set:count=[1])", "no list of an earlier axis gives tag:Rate=1"),
        ("config:[a,b](c)", "expected tag:TAG="),
        ("tag:Rate=1", "'1' is one value, which --config sets"),
        ("tag:Rate=loguni(1,2)", "unknown range 'loguni'; did you mean 'loguniform'"),
        ("tag:Rate=uniform(1)", "missing a required argument: 'high'"),
        ("tag:Rate=uniform(a,b)", "low=a: expected float"),
        ("set:count=int(1,2.5)", "high=2.5: expected int"),
        ("tag:Rate=loguniform(0,1)", "expected 0 < low"),
        ("tag:Rate=[1,,2]", "empty"),
        ("tag:Rate=[]", "empty"),
        ("tag:Rate=[(1,2]", "not closed"),
    ],
)
def test_a_wrong_axis_is_told_with_itself(text, message):
    with pytest.raises(UsageError) as caught:
        parse_axes([text])
    assert str(caught.value).startswith(f"--sweep={text}: ")
    assert message in str(caught.value)

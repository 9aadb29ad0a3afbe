"""Problems of a config, all at once, each with its place."""

import datetime
import functools
from typing import TYPE_CHECKING

import fiddle as fdl
import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config import registry
from nanigpt.config.check.assembly import Assembly
from nanigpt.config.check.build import build, check
from nanigpt.config.check.static import problems, record_findings
from nanigpt.config.compose.flag import compose
from nanigpt.config.record import names
from nanigpt.config.view.parameter_sizes import sizes
from nanigpt.errors import UsageError
from nanigpt.models.init import Constant
from nanigpt.models.linear import Linear
from nanigpt.models.norm import RMSNorm
from tests.config.components import Anything, Defaults, Part, Parts, Whole, pair, whole
from tests.support import each_recipe, tiny

if TYPE_CHECKING:
    from collections import OrderedDict


def said(cfg):
    return [str(finding) for finding in problems(cfg)]


def wrong(cfg):
    return [str(finding) for finding in Assembly(cfg).findings]


class Unresolvable:
    def __init__(self, *, table: "OrderedDict | None" = None):
        self.table = table


class Layer(torch.nn.Module):
    def __init__(self, *, norm: torch.nn.Module):
        super().__init__()
        self.norm = norm


@pytest.mark.parametrize("name", each_recipe())
def test_no_recipe_has_a_problem(name):
    cfg = compose([f"config:{name}"])
    assert said(cfg) == []
    assert wrong(cfg) == []


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("count", "x", "count='x': expected int (str is not an instance of int)"),
        ("count", 1.5, "count=1.5: expected int (float is not an instance of int)"),
        ("limit", "x", "limit='x': expected int or None"),
        ("mode", "medium", "mode='medium': expected one of 'fast', 'slow' (str is not any of ('fast', 'slow'))"),
        ("dtype", "bf16", "dtype='bf16': expected dtype (str is not an instance of torch.dtype)"),
        ("pair", (1, "x"), "pair=(1, 'x'): expected tuple[float, float] (item 1 of tuple is neither float or int)"),
        ("pair", (1,), "pair=(1,): expected tuple[float, float] (tuple has wrong number of elements (expected 2, got 1 instead))"),
        ("table", {"a": "b"}, "table={'a': 'b'}: expected dict[str, int] or None"),
        ("parts", [1, 2], "parts=[1, 2]: expected list[Part] (item 0 of list is not an instance of tests.config.components.Part)"),
        ("parts", fdl.Config(Part), "parts: expected list[Part], not Part"),
        ("parts", [fdl.Config(Part), fdl.Config(Whole, name="n", parts=[])], "parts[1]: expected Part, not Whole"),
        ("parts", [fdl.Config(Part), 3], "parts[1]=3: expected Part (int is not an instance of tests.config.components.Part)"),
        ("parts", (fdl.Config(Part),), "parts: expected list[Part], not tuple"),
        ("name", fdl.Config(Part), "name: expected str, not Part"),
    ],
)  # fmt: skip
def test_types(name, value, expected):
    cfg = whole()
    setattr(cfg, name, value)
    assert said(cfg) == [expected]


@pytest.mark.parametrize(
    "name, value",
    [
        ("limit", None),
        ("pair", (1, 2)),
        ("count", 7),
        ("table", None),
        ("parts", []),
        ("table", {"a": 1, "b": 2}),
    ],
)
def test_right_types_are_no_problem(name, value):
    cfg = whole()
    setattr(cfg, name, value)
    assert said(cfg) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"many": [fdl.Config(Part)]},
        {"many": (fdl.Config(Part), fdl.Config(Part))},
        {"named": {"a": fdl.Config(Part)}},
        {"act": fdl.Partial(pair, a=1)},
        {"act": torch.relu},
        {"thing": fdl.Partial(pair, a=1)},
        {"thing": [fdl.Config(Part)]},
        {"some": fdl.Config(Part)},
        {"others": [fdl.Config(Part)]},
        {"size": 3},
        {"extra": 0.5},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_general_annotations_take_what_fits_them(arguments):
    assert said(fdl.Config(Parts, **arguments)) == []


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"many": [fdl.Config(Whole)]}, "many[0]: expected Part, not Whole"),
        ({"many": {"a": fdl.Config(Part)}}, "many: expected Sequence, not dict"),
        ({"named": {"a": fdl.Config(Whole)}}, "named['a']: expected Part, not Whole"),
        ({"named": [fdl.Config(Part)]}, "named: expected Mapping or None, not list"),
        (
            {"extra": "x"},
            "extra='x': expected float (str is neither float or int)",
        ),
    ],
)
def test_general_annotations_refuse_what_does_not(arguments, expected):
    assert expected in said(fdl.Config(Parts, **arguments))


def test_arguments_by_position():
    cfg = fdl.Config(Parts, 1, 2, 3)
    assert said(cfg) == []
    assert Assembly(cfg).root.rest == (2, 3)
    assert sizes(cfg)
    assert said(fdl.Config(Parts, "x", "y")) == [
        "[0]='x': expected int (str is not an instance of int)",
        "[1]='y': expected int (str is not an instance of int)",
    ]


@pytest.mark.parametrize(
    "cfg",
    [fdl.Config(dict, a=1), fdl.Config(datetime.timedelta, days=1), fdl.Config(Defaults)],
    ids=["dict", "timedelta", "defaults"],
)
def test_what_has_no_signature_or_nameless_defaults_is_no_problem(cfg):
    assert said(cfg) == []
    assert wrong(cfg) == []


def unrecordable_run():
    cfg = compose(["config:llama3_debug"])
    cfg.schedule = fdl.Config(Anything)
    cfg.task.loss = lambda head, x, labels: x
    return cfg


def test_what_cannot_be_recorded_is_told_with_the_remedy(monkeypatch, capsys):
    cfg = unrecordable_run()
    assert [str(finding) for finding in record_findings(cfg)] == [
        "schedule: tests.config.components:Anything is in none of the packages nanigpt; if it is "
        "your own, add --import=FILE.py or --import=MODULE"
    ]
    monkeypatch.setitem(registry._recipes, "unrecordable_run", unrecordable_run)
    for command in ("check", "train"):
        assert main([command, "--config=config:unrecordable_run"]) == 2
        told = capsys.readouterr().err
        assert "task.loss: a lambda (test_static.py:" in told
        assert told.count("add --import=FILE.py") == (2 if command == "check" else 1)


def test_missing_arguments():
    cfg = fdl.Config(Whole, parts=[fdl.Config(Part)])
    assert said(cfg) == ["name: required by Whole, not set"]
    assert said(fdl.Partial(Whole)) == []
    # Nobody gives it more when the Partial is called.
    assert said(fdl.Partial(pair, a=fdl.ArgFactory(pair))) == ["a.a: required by pair, not set"]


def test_a_module_below_a_partial_is_refused():
    norm = fdl.Config(RMSNorm, dim=3, initializer=None)
    shared = fdl.Partial(Layer, norm=norm)
    assert any("RMSNorm below Partial would be one module shared" in p for p in said(shared))
    fresh = fdl.Partial(Layer, norm=fdl.ArgFactory(RMSNorm, dim=3))
    assert not any("would be one module" in p for p in said(fresh))


@pytest.mark.parametrize(
    "below, path",
    [
        ([fdl.Config(torch.nn.Linear, 2, 2)], "a[0]"),
        ({"k": (fdl.Config(torch.nn.Linear, 2, 2),)}, "a['k'][0]"),
        (fdl.Config(pair, a=fdl.Config(torch.nn.Linear, 2, 2)), "a.a"),
        (fdl.ArgFactory(pair, a=fdl.Config(torch.nn.Linear, 2, 2)), "a.a"),
        (fdl.ArgFactory(torch.nn.Linear, 2, 2), None),
    ],
)
def test_a_module_is_shared_however_deep_below_a_partial(below, path):
    partial = fdl.Partial(pair, a=below)
    told = [p.partition(":")[0] for p in said(partial) if "one module shared" in p]
    assert told == ([path] if path else [])

    def module(value):  # in what one call makes
        while not isinstance(value, torch.nn.Module):
            value = value["k" if isinstance(value, dict) else 0]
        return value

    make = fdl.build(partial)
    assert (module(make()) is module(make())) == bool(path)


def test_an_annotation_that_hides_tags_is_told():
    [problem] = said(fdl.Config(Unresolvable))
    assert "the root: an annotation of Unresolvable cannot be resolved" in problem


def test_every_constructor_speaks_and_parents_of_the_failed_are_silent():
    cfg = whole()
    cfg.parts[1].size = -1
    cfg.parts.append(fdl.Config(Part, size=-5))
    assert wrong(cfg) == [
        "parts[1]: size=-1: expected 0 or more",
        "parts[3]: size=-5: expected 0 or more",
    ]
    with pytest.raises(UsageError, match=r"^2 problems:\n  parts\[1\]: size=-1.*\n  parts\[3\]"):
        build(cfg)


def test_all_problems_are_told_at_once():
    cfg = compose(
        [
            "config:llama3_8b",
            "set:model.layers[3].attention.wq.out_dim=5",
            "set:task.sampler.temperature=-1",
            "set:data.corpus.validation_fraction=2",
        ]
    )
    with pytest.raises(UsageError) as caught:
        build(cfg)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:] if " try: " not in line] == [
        "model.layers[3].attention.wq.out_dim=5",
        "data.corpus.validation_fraction=2.0",
        "task.sampler.temperature=-1.0",
    ]


def test_shared_nodes_are_built_once():
    built = build(whole())
    assert built.parts[0] is built.parts[2]
    assert built.parts[0] is not built.parts[1]


def test_a_lambda_is_refused_with_its_path():
    cfg = whole()
    cfg.name = lambda: "x"
    cfg.parts[1].rate = lambda: 1.0
    lambdas = [line for line in said(cfg) if "name the function" in line]
    assert [line.partition(":")[0] for line in lambdas] == ["name", "parts[1].rate"]
    assert "def it at the top level of a module" in lambdas[0]


def test_a_check_allocates_nothing():
    built = check(fdl.Config(Anything, a=fdl.Config(torch.nn.Linear, 1_000_000, 1_000_000)))  # 4 TB
    assert built.a.weight.is_meta


def test_what_nests_too_deeply_is_told():
    cfg = fdl.Config(Anything)
    for _ in range(500):
        cfg = fdl.Config(Anything, a=cfg)
    with pytest.raises(UsageError, match="nests deeper"):
        build(cfg)
    with pytest.raises(UsageError, match="nests deeper"):
        sizes(cfg)


def test_the_command_checks_any_dag(monkeypatch, capsys):
    found = {"parts": lambda: fdl.Config(Parts, many=[fdl.Config(Part)])}
    monkeypatch.setattr(registry, "recipes", lambda: found)
    monkeypatch.setattr(names, "extension_packages", lambda: frozenset({"nanigpt", "tests"}))
    assert main(["check", "--config=config:parts"]) == 0
    assert "no problems; builds Parts, which is no Trainer, fingerprint " in capsys.readouterr().out
    assert main(["check", "--config=config:parts", "--config=set:many[0].size=-1"]) == 2
    assert "many[0]: size=-1: expected 0 or more" in capsys.readouterr().err


def test_frames_of_torch_are_no_part_of_a_message():
    cfg = fdl.Config(Linear, in_dim=10**20, out_dim=4, initializer=fdl.Config(Constant, value=1.0))
    with pytest.raises(UsageError) as caught:
        check(cfg)
    assert "frame #" not in str(caught.value)
    assert "Overflow" in str(caught.value)


@pytest.mark.parametrize("function", [Layer, functools.partial])
def test_an_optimizer_that_fails_is_told_by_its_place(function):
    cfg = tiny()
    cfg.optimizer = fdl.Partial(function)
    trainer = check(cfg)
    found = trainer.problems(1, None)
    assert any("other arguments: " in problem.expected for problem in found)

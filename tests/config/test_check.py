"""Problems of a config, all at once, each with its place."""

from typing import TYPE_CHECKING

import fiddle as fdl
import pytest
import torch

from nanigpt.config.build import build
from nanigpt.config.check import collect_build, problems
from nanigpt.config.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.errors import UsageError
from nanigpt.models.norm import RMSNorm
from tests.config.components import Part, Whole, whole

if TYPE_CHECKING:
    from collections import OrderedDict


class Unresolvable:
    def __init__(self, *, table: "OrderedDict | None" = None):
        self.table = table


class Layer(torch.nn.Module):
    def __init__(self, *, norm: torch.nn.Module):
        super().__init__()
        self.norm = norm


@pytest.mark.parametrize("name", recipes())
def test_no_recipe_has_a_problem(name):
    cfg = compose([f"config:{name}"])
    assert problems(cfg) == []
    assert collect_build(cfg)[1] == []


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
    assert problems(cfg) == [expected]


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
    assert problems(cfg) == []


def test_missing_arguments():
    cfg = fdl.Config(Whole, parts=[fdl.Config(Part)])
    assert problems(cfg) == ["name: required by Whole, not set"]
    assert problems(fdl.Partial(Whole)) == []


def test_a_module_below_a_partial_is_refused():
    norm = fdl.Config(RMSNorm, dim=3, initializer=None)
    shared = fdl.Partial(Layer, norm=norm)
    assert any("RMSNorm below Partial would be one module shared" in p for p in problems(shared))
    fresh = fdl.Partial(Layer, norm=fdl.ArgFactory(RMSNorm, dim=3))
    assert not any("would be one module" in p for p in problems(fresh))


def test_an_annotation_that_hides_tags_is_told():
    [problem] = problems(fdl.Config(Unresolvable))
    assert "the root: an annotation of Unresolvable cannot be resolved" in problem


def test_every_constructor_speaks_and_parents_of_the_failed_are_silent():
    cfg = whole()
    cfg.parts[1].size = -1
    cfg.parts.append(fdl.Config(Part, size=-5))
    _, said = collect_build(cfg)
    assert said == [
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
            "set:sampler.temperature=-1",
            "set:data.corpus.validation_fraction=2",
        ]
    )
    with pytest.raises(UsageError) as caught:
        build(cfg)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "model.layers[3].attention",
        "data.corpus",
        "sampler",
    ]


def test_shared_nodes_are_built_once():
    built, said = collect_build(whole())
    assert said == []
    assert built.parts[0] is built.parts[2]
    assert built.parts[0] is not built.parts[1]


def test_a_lambda_is_refused_with_its_path():
    cfg = whole()
    cfg.name = lambda: "x"
    cfg.parts[1].rate = lambda: 1.0
    said = [line for line in problems(cfg) if "name the function" in line]
    assert [line.partition(":")[0] for line in said] == ["name", "parts[1].rate"]
    assert "def it at the top level of a module" in said[0]

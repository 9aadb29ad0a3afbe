"""What is wrong, where, who set it, and the flag that mends it."""

import shlex
from typing import Annotated

import fiddle as fdl
import pytest
import torch

from nanigpt import tags
from nanigpt.config import registry
from nanigpt.config.check.assembly import Assembly
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.problems import ComponentError, Fix, Problem, refuse
from tests.config.components import Part


class Head:
    def __init__(self, *, n_heads: int = 8, dtype: torch.dtype = torch.float32):
        if n_heads % 4:
            refuse("n_heads", n_heads, "a multiple of 4", Fix(self, "n_heads", 8))
        if n_heads == 12:
            raise RuntimeError("12 is unlucky")
        self.n_heads, self.dtype = n_heads, dtype


class Net:
    def __init__(self, *, layers: list[Head], length: Annotated[int, tags.SequenceLength] = 4):
        self.layers, self.length = layers, length


class Compiler:
    pass


class Mesh:
    def __init__(self, *, tp: Annotated[int, tags.TensorParallel] = 1):
        self.tp = tp


class Root:
    def __init__(
        self,
        *,
        net: Net,
        mesh: Mesh,
        named: dict[str, Head],
        compile: Compiler | None = None,
        length: Annotated[int, tags.SequenceLength] = 4,
        lr: Annotated[float, tags.LearningRate] = 1.0,
    ):
        self.net, self.mesh, self.named, self.compile = net, mesh, named, compile
        self.length, self.lr = length, lr
        self.built_itself = Mesh()

    def problems(self):
        return self.found


@pytest.fixture(autouse=True)
def a_component(monkeypatch):
    monkeypatch.setitem(registry._components, "a_compiler", a_compiler)


def a_compiler() -> fdl.Config[Compiler]:
    return fdl.Config(Compiler)


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


class Held(torch.nn.Module):
    def __init__(self, *, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner


def make():
    return fdl.Config(
        Root,
        net=fdl.Config(Net, layers=[fdl.Config(Head) for _ in range(12)]),
        mesh=fdl.Config(Mesh),
        named={"a": fdl.Config(Head), "b": fdl.Config(Head)},
    )


def told(cfg, *problems, directives=None):
    with pytest.raises(UsageError) as caught:
        assembly = Assembly(cfg, directives=directives)
        assembly.check(lambda root: [p(root) if callable(p) else p for p in problems])
    return str(caught.value)


def flags(message):
    """The directives of all `try:` lines that are flags."""
    lines = [line.strip() for line in message.splitlines()]
    tried = [shlex.split(line[5:]) for line in lines if line.startswith("try: ")]
    given = [flag for flags in tried if flags[0] != "nanigpt" for flag in flags]
    return [flag.removeprefix("--config=") for flag in given]


def edited(*directives):
    return compose(list(directives), make())


def test_equal_problems_are_one_line_with_a_flag_that_mends_all():
    cfg = edited("set:net.layers[*].n_heads=6")
    message = told(cfg)
    assert message == (
        "net.layers[0:12].n_heads=6: expected a multiple of 4"
        "  <- --config=set:net.layers[*].n_heads=6\n"
        "  try: '--config=set:net.layers[0:12].n_heads=8'"
    )
    compose(flags(message), cfg)
    Assembly(cfg).check()


def test_strides_and_dict_keys():
    cfg = edited("set:net.layers[1::4].n_heads=6", "set:named['b'].n_heads=6")
    message = told(cfg)
    assert message.splitlines() == [
        "2 problems:",
        "  net.layers[1:10:4].n_heads=6: expected a multiple of 4"
        "  <- --config=set:net.layers[1::4].n_heads=6",
        "    try: '--config=set:net.layers[1:10:4].n_heads=8'",
        "  named['b'].n_heads=6: expected a multiple of 4  <- --config=set:named['b'].n_heads=6",
        """    try: '--config=set:named['"'"'b'"'"'].n_heads=8'""",
    ]
    compose(flags(message), cfg)
    Assembly(cfg).check()


def test_a_constructor_of_another_package_is_named_with_who_set_its_arguments():
    cfg = edited("set:net.layers[3].n_heads=12", "set:length=4")
    assert told(cfg, directives=["config:made", "set:length=4"]) == (
        "net.layers[3]: RuntimeError: 12 is unlucky  <- --config=set:net.layers[3].n_heads=12\n"
        "  try: nanigpt show --config=config:made --config=set:length=4 --format=flat --why"
    )


def test_types_and_constructors_are_told_together():
    cfg = edited("set:net.layers[3].n_heads=6")
    cfg.mesh.tp = "x"
    cfg.length = "y"
    lines = told(cfg).splitlines()
    assert lines[0] == "3 problems:"
    assert lines[1].startswith("  length='y': expected int")
    assert lines[2].startswith("  mesh.tp='x': expected int")
    assert lines[3].startswith("  net.layers[3].n_heads=6: expected a multiple of 4")


def test_a_problem_of_another_component_has_that_ones_path():
    cfg = edited("tag:TensorParallel=3")
    message = told(
        cfg,
        lambda root: Problem("tp", 3, "a divisor of 8", Fix(None, "tp", 2), component=root.mesh),
    )
    assert message == (
        "mesh.tp=3: expected a divisor of 8  <- --config=tag:TensorParallel=3\n"
        "  try: --config=tag:TensorParallel=2"
    )
    assert compose(flags(message), cfg).mesh.tp == 2


class Schedule:
    def __init__(self, *, warmup: int = 10):
        self.warmup = warmup


class Run:
    def __init__(self, *, schedule: Schedule, steps: int = 5):
        expected, given = f"less than steps={steps}", ((self, "steps"),)
        refuse("warmup", schedule.warmup, expected, component=schedule, given=given)


def test_who_set_what_an_expectation_follows_from_is_told_too():
    cfg = compose(["set:steps=6"], fdl.Config(Run, schedule=fdl.Config(Schedule)))
    assert told(cfg) == "schedule.warmup=10: expected less than steps=6  <- --config=set:steps=6"


def test_an_argument_may_be_a_path():
    assert told(make(), Problem("net.layers[3].n_heads", 8, "4", Fix(None, "mesh.tp", 2))) == (
        "net.layers[3].n_heads=8: expected 4\n  try: --config=tag:TensorParallel=2"
    )


def test_a_tag_is_proposed_only_where_it_changes_nothing_else():
    def both(root):
        fix = (Fix(root, "length", 8), Fix(root.net, "length", 8))
        return Problem("length", 4, "8", fix)

    assert flags(told(make(), both)) == ["tag:SequenceLength=8"]
    one = Problem("length", 4, "8", Fix(None, "length", 8))
    assert flags(told(make(), one)) == ["tag:SequenceLength=8"]  # the other has the same value
    cfg = edited("set:net.length=5")
    assert flags(told(cfg, one)) == ["set:length=8"]
    assert compose(["set:length=8"], cfg).net.length == 5


@pytest.mark.parametrize(
    "fix, directive",
    [
        (Fix(None, "compile", Compiler), "set:compile=@a_compiler"),
        (Fix(None, "compile", None), "set:compile=None"),
        (Fix(None, "net.layers[0].dtype", torch.bfloat16), "set:net.layers[0].dtype=bfloat16"),
        (Fix(None, "lr", 1e-3), "tag:LearningRate=0.001"),
    ],
)
def test_values_of_flags_are_read_back(fix, directive):
    message = told(make(), Problem("lr", 1.0, "something else", fix))
    assert flags(message) == [directive]
    compose([directive], make())


@pytest.mark.parametrize(
    "fix, words",
    [
        ("another rate", "lr=1.0: expected less; try another rate"),
        (Fix(None, "lr", "high"), "lr=1.0: expected less; try lr='high'"),
        (Fix(None, "nothing", 3), "lr=1.0: expected less; try nothing=3"),
        (Fix(None, "net", Net), "lr=1.0: expected less; try net=Net"),
        (Fix(None, "lr", object()), "lr=1.0: expected less; try lr=object"),
    ],
)
def test_a_fix_that_no_flag_makes_is_words(fix, words):
    assert told(make(), Problem("lr", 1.0, "less", fix)) == words


def test_objects_that_no_node_built_are_found_by_who_holds_them():
    message = told(make(), lambda root: Problem("tp", 1, "2", component=root.built_itself))
    assert message == "built_itself.tp=1: expected 2"
    assert told(make(), Problem("tp", 1, "2", component=Mesh())) == "Mesh.tp=1: expected 2"


def test_modules_inside_of_a_built_module_are_found():
    cfg = fdl.Config(Held, inner=fdl.Config(Plain))
    problem = lambda held: Problem("", ..., "wider", component=held.inner.layers[1])  # noqa: E731
    assert told(cfg, problem) == "inner.layers[1]: expected wider"


def test_problems_of_the_whole_component_and_of_several_arguments():
    assert told(make(), Problem("", ..., "a larger one")) == "expected a larger one"
    assert told(make(), lambda root: Problem("", ..., "wider layers", component=root.net)) == (
        "net: expected wider layers"
    )
    assert told(make(), lambda root: Problem("a and b", 3, "wide", component=root.net)) == (
        "net: a and b=3: expected wide"
    )


def test_problems_after_the_build_have_paths_too():
    assembly = Assembly(make())
    assembly.check()
    with pytest.raises(UsageError, match="^mesh.tp=1: expected 2$"), assembly.located():
        refuse("tp", 1, "2", component=assembly.root.mesh)
    with pytest.raises(ValueError, match="^other$"), assembly.located():
        raise ValueError("other")


def test_a_cross_check_may_raise():
    def fails(root):
        raise ComponentError(Problem("tp", 1, "2", component=root.mesh), Problem("lr", 1.0, "2"))

    with pytest.raises(UsageError) as caught:
        Assembly(make()).check(fails, lambda root: [Problem("length", 4, "5")])
    assert str(caught.value).splitlines() == [
        "3 problems:",
        "  mesh.tp=1: expected 2",
        "  lr=1.0: expected 2",
        "  length=4: expected 5",
    ]


def given_back(part):
    return part


def test_what_a_function_gives_back_has_the_path_of_who_has_the_argument():
    cfg = fdl.Config(given_back, part=fdl.Config(Part))
    problem = lambda part: Problem("size", 3, "4", component=part)  # noqa: E731
    assert told(cfg, problem) == "part.size=3: expected 4"


def test_who_set_it_is_the_line_of_the_recipe():
    cfg = make()
    cfg.lr = 5.0
    assert told(cfg, Problem("lr", 5.0, "less")).startswith(
        "lr=5.0: expected less  <- tests/config/check/test_findings.py:"
    )


def test_the_stack_of_torch_is_left_out():
    with pytest.raises(UsageError) as told:
        Assembly(compose(["config:qwen3_debug", f"set:model.norm.dim={10**20}"])).check()
    assert "10" in str(told.value) and "frame #" not in str(told.value)

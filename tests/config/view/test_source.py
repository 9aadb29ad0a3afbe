"""Configs and their differences as Python. Random ones: test_fuzz.py."""

import copy
import subprocess
import sys

import fiddle as fdl
import pytest
import torch
from fiddle import daglish

from nanigpt.config.compose.flag import compose
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.view.diff import render as render_diff
from nanigpt.config.view.edit import to_fiddler
from nanigpt.config.view.show import render
from nanigpt.errors import UsageError
from tests.config.components import Color, Part, Whole, whole
from tests.config.dags import tags_of
from tests.config.record.test_fuzz import canonical, execute
from tests.config.signatures import Variadic
from tests.support import each_recipe


@pytest.mark.parametrize("recipe", each_recipe())
def test_every_recipe_is_rebuilt(recipe):
    cfg = compose([f"config:{recipe}"])
    rebuilt = execute(render(cfg, format="python"), "config")()
    assert rebuilt == cfg
    assert fingerprint(rebuilt) == fingerprint(cfg)
    assert tags_of(rebuilt) == tags_of(cfg)


def test_the_file_stands_alone(tmp_path):
    cfg = compose(["config:llama3_1b", "set:schedule=@linear(warmup_steps=3)"])
    path = tmp_path / "rebuilt.py"
    path.write_text(render(cfg, format="python"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rebuilt\n"
    code += "from nanigpt.config.record.fingerprint import fingerprint\nprint(fingerprint(rebuilt.config()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == fingerprint(cfg)


def test_equal_layers_are_made_by_one_function():
    text = render(compose(["config:llama3_405b"]), format="python")
    assert "layers=[transformer_block() for _ in range(126)]" in text
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 100


def test_layers_that_differ_stand_apart():
    cfg = compose(["config:llama3_8b", "set:model.layers[3].activation_checkpointing=full"])
    text = render(cfg, format="python")
    assert "*(transformer_block() for _ in range(3))," in text
    assert "*(transformer_block_2() for _ in range(28))," in text


def test_classes_of_one_name_are_told_apart():
    cfg = compose(["config:llama3_8b", "set:schedule=@linear"])
    text = render(cfg, format="python")
    assert "from nanigpt.models.linear import Linear\n" in text
    assert "from nanigpt.optim.schedule import Linear as schedule_Linear" in text
    assert execute(text, "config")() == cfg


def test_what_cannot_be_written_is_told_by_its_path():
    cfg = whole()
    cfg.parts[1].rate = Part()
    with pytest.raises(UsageError, match=r"parts\[1\].rate: .* cannot be written as Python"):
        render(cfg, format="python")
    cfg.parts[1].rate = lambda: 0
    with pytest.raises(UsageError, match=r"parts\[1\].rate: .*lambda.* has no name"):
        render(cfg, format="python")


def test_a_difference_as_a_fiddler():
    old = compose(["config:llama3_8b"])
    new = compose(
        [
            "config:llama3_8b",
            "set:model.layers[*].attention.wq.initializer.scale=2",
            "set:model.layers[::4].activation_checkpointing=full",
            "set:schedule=@linear(warmup_steps=3)",
            "tag:LearningRate=1e-4",
        ]
    )
    text = render_diff(old, new, format="python")
    assert text.split("def edit", 1)[1].splitlines()[2:] == [
        "    for each in cfg.model.layers[0:29:4]:",
        '        each.activation_checkpointing = "full"',
        "    for each in cfg.model.layers[0:32]:",
        "        each.attention.wq.initializer.scale = 2.0",
        "    cfg.optimizer.lr = 0.0001",
        "    cfg.schedule = fdl.Config(Linear, warmup_steps=3, final=0.0)",
    ]
    execute(text, "edit")(old)
    assert old == new


@pytest.mark.parametrize("names", [("llama3_1b", "llama3_3b"), ("llama3_8b", "llama3_1b")])
def test_one_recipe_becomes_another(names):
    old, new = (compose([f"config:{name}"]) for name in names)
    execute(render_diff(old, new, format="python"), "edit")(old)
    assert old == new
    assert fingerprint(old) == fingerprint(new)
    assert tags_of(old) == tags_of(new)


def sharing(cfg: fdl.Buildable) -> list[int]:
    """For each list and dict that a walk meets, when it was met first."""
    numbers: dict[int, int] = {}
    values = [value for value, _ in daglish.iterate(cfg, memoized=False)]
    parts = [value for value in values if isinstance(value, (list, dict))]
    return [numbers.setdefault(id(part), len(numbers)) for part in parts]


def listed(*, shared: bool, value: int = 1) -> fdl.Config:
    names = [value]
    other = names if shared else [value]
    parts = [fdl.Config(Part, size=names), fdl.Config(Part, size=other, rate=names)]
    return fdl.Config(Whole, name="w", parts=parts, table={"a": names})


def test_a_list_that_two_nodes_hold_stays_one():
    for cfg in (listed(shared=True), listed(shared=False)):
        rebuilt = execute(render(cfg, format="python"), "config")()
        assert rebuilt == cfg
        assert sharing(rebuilt) == sharing(cfg)


@pytest.mark.parametrize("before", [listed(shared=True), listed(shared=False)])
@pytest.mark.parametrize(
    "after", [listed(shared=True), listed(shared=False), listed(shared=True, value=2)]
)
def test_a_fiddler_shares_lists(before, after):
    cfg = copy.deepcopy(before)
    execute(to_fiddler(before, after), "edit")(cfg)
    assert canonical(cfg) == canonical(after)
    assert sharing(cfg) == sharing(after)


def test_arguments_of_every_kind():
    cfg = fdl.Config(Variadic, 1, 2, 3, 4, third=5, **{"a-b": fdl.Config(Part), "class": 6.0})
    assert execute(render(cfg, format="python"), "config")() == cfg
    for other in (
        fdl.Config(Variadic, 1, 2),
        fdl.Config(Variadic, 7, 2, 3, 5, third=5, **{"a-b": fdl.Config(Part, size=1), "class": 7}),
        fdl.Config(Variadic, 1, 2, 3, fdl.Config(Part), 5, 6),
    ):
        for old, new in ((cfg, other), (other, cfg)):
            edited = copy.deepcopy(old)
            execute(to_fiddler(old, new), "edit")(edited)
            assert edited == new


def test_functions_of_torch():
    functions = [torch.relu, torch.nn.functional.gelu, torch.nn.functional.relu, torch.nn.GELU]
    cfg = fdl.Config(Whole, name="w", parts=functions)
    assert execute(render(cfg, format="python"), "config")().parts == functions


@pytest.mark.parametrize(
    "keys", [[0, 1, 2], ["a[0]", "a[1]", "it's"], [Color.RED, Color.BLUE], [(1, 2), (1, 3)]]
)
def test_keys_are_no_indices(keys):
    old, new = (
        fdl.Config(Whole, name="w", parts={key: fdl.Config(Part, size=size) for key in keys})
        for size in (1, 2)
    )
    edited = copy.deepcopy(old)
    execute(to_fiddler(old, new), "edit")(edited)
    assert {key: part.size for key, part in edited.parts.items()} == dict.fromkeys(keys, 2)
    assert execute(render(old, format="python"), "config")().parts.keys() == old.parts.keys()


def test_roots_of_different_classes_cannot_be_edited():
    with pytest.raises(UsageError, match="the roots differ, Part and Whole: no edit in place"):
        render_diff(fdl.Config(Part), whole(), format="python")


def test_values_of_every_kind():
    cfg = fdl.Config(Whole, name='a "b"\n', parts=[], color=Color.BLUE, limit=float("inf"))
    cfg.table = {"x": -1}
    assert execute(render(cfg, format="python"), "config")() == cfg

"""Configs written and read back."""

import datetime
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import pytest
import torch

from nanigpt.config import registry
from nanigpt.config.compose.flag import compose
from nanigpt.config.record import names
from nanigpt.config.record.file import differences, dump, load, unrecordable
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import choose_run, claim_run, load_run
from nanigpt.errors import UsageError
from nanigpt.models.linear import Linear
from tests.config.components import Anything, Color, Part, Point, Rate, Side, pair, whole
from tests.config.dags import tags_of
from tests.support import each_recipe, tiny

OLD = Path(__file__).parents[2] / "fixtures/runs/llama3/config.json"


@pytest.fixture
def tests_allowed(monkeypatch):
    """A record may name the components of these tests."""
    known = names.extension_packages()
    monkeypatch.setattr(names, "extension_packages", lambda: known | {"tests"})


@pytest.mark.parametrize("name", each_recipe())
def test_every_recipe_loads_back_equal(name, tmp_path):
    cfg = compose([f"config:{name}"])
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    loaded = load(path)
    assert loaded == cfg
    layers = loaded.model.layers
    ropes = [layer.attention.rope for layer in layers if layer.attention.rope is not None]
    assert len({id(rope) for rope in ropes}) == 1
    assert len({id(layer.attention.wo) for layer in layers}) == len(layers)
    assert dump(loaded) == dump(cfg)
    assert fingerprint(loaded) == fingerprint(cfg)


def test_callables_and_dtypes_are_recorded(tmp_path):
    cfg = tiny("set:model.embedding.compute_dtype=bf16")
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    assert load(path).model.embedding.compute_dtype is torch.bfloat16
    assert fdl.get_callable(load(path).optimizer) is fdl.get_callable(cfg.optimizer)


def test_a_lambda_cannot_be_recorded():
    cfg = tiny()
    cfg.task.loss = lambda logits, labels: 0
    with pytest.raises(UsageError, match=r"task.loss: a lambda \(test_file.py:.*--import=FILE.py"):
        dump(cfg)


def test_everything_that_cannot_be_recorded_is_told_at_once():
    class Local:
        pass

    cfg = tiny()
    cfg.task.loss = fdl.Config(Local)
    cfg.optimizer.groups = (object(),)
    cfg.schedule = fdl.Config(datetime.timedelta, days=1)
    found = "\n".join(unrecordable(cfg))
    assert "task.loss: <class" in found and "define it at the top level of a module" in found
    assert "optimizer.groups[0]: <object object" in found
    assert "schedule: datetime:timedelta is in none of the packages" in found
    assert "--import=FILE.py" in found


@pytest.mark.parametrize(
    "value",
    [
        torch.relu,
        torch.nn.functional.gelu,
        torch.nn.functional.silu,
        torch.nn.functional.conv2d,
        torch.nn.functional.max_pool2d,
        torch.nn.init.normal_,
        torch.nn.GELU,
        torch.optim.AdamW,
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.device("cuda", 1),
        torch.channels_last,
        torch.float8_e4m3fn,
        1 + 2j,
        int,
        Path("a/b"),
        Point(1, 2),
        Anything.made,
        Color.RED,
        Side.LEFT,
        functools.partial(pair, 1, b=[2]),
        fdl.Config(torch.nn.Linear, 3, 4, dtype=torch.bfloat16),
        fdl.Config(torch.nn.Sequential, fdl.Config(torch.nn.ReLU)),
        fdl.Partial(torch.optim.AdamW, lr=1e-3),
        fdl.Config(dict, a=1),
        fdl.Config(Anything.made, a=1),
    ],
    ids=lambda value: re.sub("0x[0-9a-f]+", "", str(value)),  # alike in all processes
)
def test_values_load_back_equal(value, tmp_path, tests_allowed):
    cfg = fdl.Config(Anything, a=value)
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    loaded = load(path)
    assert differences(cfg, loaded) == []
    assert type(loaded.a) is type(value)
    assert repr(loaded) == repr(cfg) or isinstance(value, functools.partial)


def test_a_list_of_two_arguments_stays_one(tmp_path, tests_allowed):
    shared = [1]
    path = tmp_path / "config.json"
    path.write_text(dump(fdl.Config(Anything, a=shared, b=shared)))
    loaded = load(path)
    assert loaded.a is loaded.b


def test_torch_is_recorded_by_public_names():
    recorded = dump(fdl.Config(torch.nn.Linear, 1, 2))
    assert '"torch.nn:Linear"' in recorded
    assert "torch.nn.modules" not in recorded


def test_importing_main_runs_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import nanigpt.__main__"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]",
        '{"root": 3, "objects": {}}',
        "nonsense",
        '{"format": 3}',
        '{"format": 2}',
    ],
)
def test_what_is_not_a_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="config"):
        load(path)


def args_of_root(record):
    return json.dumps(record | {"config": {**record["config"], "@args": [["parts", []]]}})


@pytest.mark.parametrize(
    "name, edit, message",
    [
        ("deep", lambda record: "[" * 100_000 + "]" * 100_000, "nests deeper"),
        ("circular", None, r"parts\[0\].size: the shared part 'parts' holds itself"),
        ("tag", ('"@tags"', '[["rate", ["tests.config.components:Part"]]]'), "Part is not a tag"),
        ("argument", ('"ratio"', "1"), r"parts\[1\]: .*Part takes no 'ratio'"),
        ("position", ('"@args"', "[[0, 1]]"), r"parts\[1\]: .*Part takes no 0"),
        ("mark", ('"@more"', "1"), r"parts\[1\]: a node has no @more"),
        ("times", ('"@times"', "0"), r"parts: @times=0: expected a number from 1 to"),
        ("many", ('"@times"', "1000000"), r"parts: @times=1000000: expected .* to 200,000"),
        ("two keys", lambda record: '{"format": 2, "a": {"lr": 1, "lr": 2}}', "has 'lr' twice"),
        ("two values", args_of_root, "the root: two values for the argument 'parts'"),
        ("two args", ('"@args"', "[[0, 1], [0, 2]]"), "an argument stands there twice"),
    ],
)
def test_damage_is_told_by_its_place(name, edit, message, tmp_path, tests_allowed):
    record = json.loads(dump(whole()))
    if name == "circular":
        record["config"]["@shared"]["parts"]["size"] = {"@same": "parts"}
    elif isinstance(edit, tuple):
        record["config"]["parts"][1][json.loads(edit[0])] = json.loads(edit[1])
    path = tmp_path / "config.json"
    path.write_text(edit(record) if callable(edit) else json.dumps(record))
    with pytest.raises(UsageError, match=message):
        load(path)


@pytest.mark.parametrize("form", ["list", "node"])
def test_shared_parts_that_double_each_other_are_refused(form, tmp_path, tests_allowed):
    """Forty of them would be visited a million million times."""
    record = json.loads(dump(whole()))
    shared = record["config"]["@shared"]
    for i in range(40):
        twice = [{"@same": f"part {i + 1}"}] * 2
        shared[f"part {i}"] = twice if form == "list" else {"@": "Part", "size": twice}
    shared["part 40"] = [1]
    record["config"]["names"] = {"@same": "part 0"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="more than 200,000 nodes"):
        load(path)


def test_objects_of_version_0_1_that_double_each_other_are_refused(tmp_path):
    record = json.loads(OLD.read_text())
    kind = {"module": "builtins", "name": "tuple"}
    for i in range(40):
        items = [["IndexPath(0)", {"type": "ref", "key": f"pair {i + 1}"}]] * 2
        record["objects"][f"pair {i}"] = {"type": kind, "items": items, "metadata": None}
    record["objects"]["pair 40"] = {"type": kind, "items": [], "metadata": None}
    root = record["objects"][record["root"]["key"]]
    root["items"][0][1] = {"type": "ref", "key": "pair 0"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="more than 200,000 objects"):
        load(path)


def test_a_record_is_read_and_compared_by_argument(tmp_path):
    """A person reads the file, and `git diff` shows the argument that differs."""
    for name, edits in {"a": (), "b": ("set:optimizer.lr=0.5",)}.items():
        (tmp_path / name).write_text(dump(compose(["config:llama3_1b", *edits])))
    done = subprocess.run(
        ["git", "diff", "--no-index", "--numstat", "a", "b"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.split()[:2] == ["1", "1"]
    assert "fiddle._src" not in (tmp_path / "a").read_text()


def test_the_record_of_a_large_model_is_short():
    text = dump(compose(["config:llama3_405b"]))
    assert len(text) < 20_000
    assert '"@times": 126' in text


class Knobs:
    def __init__(self, *, size: int = 3, kept: int = 7, names: list[str] | None = None):
        self.size, self.kept, self.names = size, kept, names


def test_a_default_that_changed_since_keeps_the_run(tmp_path, tests_allowed, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(dump(fdl.Config(Anything, a=fdl.Config(Knobs), b=fdl.Config(Knobs, size=9))))

    class Later:
        def __init__(self, *, size: int = 4, kept: int = 7, names: list[str] | None = None):
            pass

    Later.__qualname__ = "Knobs"
    monkeypatch.setitem(globals(), "Knobs", Later)
    loaded = load(path)
    assert fdl.ordered_arguments(loaded.a) == {"size": 3}
    assert fdl.ordered_arguments(loaded.b) == {"size": 9}


def test_an_argument_that_is_gone_is_told_or_upgraded(tmp_path, tests_allowed, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(dump(fdl.Config(Anything, a=fdl.Config(Knobs))))

    class Later:
        def __init__(self, *, size: int = 3, retained: int = 0):
            pass

    Later.__qualname__ = "Knobs"
    monkeypatch.setitem(globals(), "Knobs", Later)
    with pytest.raises(UsageError, match="a: .*Knobs takes no 'kept'"):
        load(path)

    def renamed(cfg):
        knobs = cfg.a
        knobs.retained = knobs.__arguments__.pop("kept")
        del knobs.__arguments__["names"]

    monkeypatch.setattr(registry, "_upgrades", [renamed])
    assert fdl.ordered_arguments(load(path).a) == {"retained": 7}


def test_a_record_of_an_earlier_version_keeps_its_defaults(tmp_path):
    """An upgrade sees every argument of that day, and those that it leaves are defaults again."""
    cfg = compose(["config:llama3_debug"])
    path = tmp_path / "config.json"
    record = json.loads(dump(cfg))
    record["nanigpt"] = "0.0.1"
    path.write_text(json.dumps(record))
    loaded = load(path)
    assert loaded == cfg
    assert dump(loaded) == dump(cfg)


def test_an_argument_that_was_renamed_is_upgraded(tmp_path, tests_allowed, monkeypatch):
    path = tmp_path / "config.json"
    text = dump(fdl.Config(Anything, a=fdl.Config(Knobs, size=9)))
    path.write_text(text.replace('"size": 9', '"extent": 9'))

    def renamed(cfg):
        cfg.a.size = cfg.a.__arguments__.pop("extent")

    with pytest.raises(UsageError, match="a: .*Knobs takes no 'extent'"):
        load(path)
    monkeypatch.setattr(registry, "_upgrades", [renamed])
    assert fdl.ordered_arguments(load(path).a) == {"size": 9}


def test_equal_neighbours_are_written_once_and_are_distinct(tmp_path, tests_allowed):
    """Parts that a neighbour holds alone stay its own, and parts of all stay shared."""
    common = [1]

    def layer():
        own = fdl.Config(Part)
        return fdl.Config(Anything, a=[own, own, common], b={"own": own})

    cfg = fdl.Config(Anything, a=[layer(), layer(), layer(), fdl.Config(Part)], b=common)
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    assert '"@times": 3' in path.read_text()
    loaded = load(path)
    assert fingerprint(loaded) == fingerprint(cfg)
    assert loaded == cfg
    first, second = loaded.a[:2]
    assert first.a[0] is first.a[1] is first.b["own"]
    assert first.a[0] is not second.a[0]
    assert first.a[2] is second.a[2] is loaded.b


def test_tags_of_a_node_are_recorded_where_they_are_its_own(tmp_path, tests_allowed):
    cfg = whole()
    fdl.remove_tag(cfg.parts[0], "rate", Rate)
    fdl.add_tag(cfg, "count", Rate)
    cfg.table = {"tagged": fdl.TaggedValue(tags=[Rate], default=3)}
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    loaded = load(path)
    assert tags_of(loaded) == tags_of(cfg)
    assert loaded == cfg


def test_differences_name_path_and_values():
    changed = differences(tiny(), tiny("set:steps=7", "set:optimizer.lr=0.5"))
    assert changed == ["optimizer.lr: 0.001 -> 0.5", "steps: 20 -> 7"]
    assert differences(tiny(), tiny()) == []


def test_differences_see_sharing_and_kinds_of_nodes():
    cfg = whole()
    cfg.parts[2] = fdl.Config(Part)
    assert differences(whole(), cfg) == ["parts[2]: (the node parts[0]) -> Part"]
    cfg = whole()
    cfg.parts[1] = fdl.Partial(Part)
    assert differences(whole(), cfg) == ["parts[1]: Part -> Partial[Part]"]
    cfg = whole()
    cfg.parts.append(fdl.Config(Part))
    assert differences(whole(), cfg) == ["parts[3]: (absent) -> Part"]


def test_a_run_directory_belongs_to_one_config(tmp_path):
    cfg, other = tiny(), tiny("set:optimizer.lr=0.5")
    assert choose_run(str(tmp_path), "a", cfg) == str(tmp_path / "a")
    recorded = tmp_path / "a" / "config.json"
    claim_run(recorded, other, started=False)
    claim_run(recorded, cfg, started=False)  # nothing was trained on the first claim
    assert load_run(str(tmp_path / "a")) == cfg
    assert choose_run(str(tmp_path), "a", cfg) == str(tmp_path / "a")
    beside = choose_run(str(tmp_path), "a", other)
    assert beside.startswith(str(tmp_path / "a-"))
    assert choose_run(str(tmp_path), "a", other) == beside
    with pytest.raises(
        UsageError, match="another config: optimizer.lr: 0.001 -> 0.5; .*--allow_config_change"
    ):
        claim_run(recorded, other, started=True)
    claim_run(recorded, tiny("set:steps=30"), started=True)  # prolongs the run
    with pytest.raises(UsageError, match="steps: 30 -> 15"):
        claim_run(recorded, tiny("set:steps=15"), started=True)
    with pytest.raises(UsageError, match=r"optimizer.betas: .* -> \(True, 0.95\)"):
        one, true = tiny("set:steps=30"), tiny("set:steps=30")
        one.optimizer.betas, true.optimizer.betas = (1, 0.95), (True, 0.95)
        claim_run(recorded, one, started=True, allow_config_change=True)
        claim_run(recorded, true, started=True)
    claim_run(recorded, tiny("set:steps=30"), started=True, allow_config_change=True)
    with pytest.raises(UsageError, match="the root: Trainer -> Linear; "):
        claim_run(recorded, fdl.Config(Linear, in_dim=1), started=True)
    logging = tiny("set:steps=40", "set:metrics.log_interval=3")
    assert claim_run(recorded, logging, started=True) == [
        "metrics.log_interval: 10 -> 3",
        "steps: 30 -> 40",
    ]
    with pytest.raises(UsageError, match=r"allowed would be: metrics.log_interval: 3 -> 10"):
        claim_run(recorded, other, started=True)
    assert load_run(str(tmp_path / "a")) == logging
    claim_run(recorded, other, started=True, allow_config_change=True)
    assert load_run(str(tmp_path / "a")) == other
    for name, text in {"weights": '{"model_type": "llama"}', "cut": '{"root"', "odd": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)  # no runs
    with pytest.raises(UsageError, match="no run there; known: a$"):
        load_run(str(tmp_path / "b"))


def test_a_run_goes_on_with_another_recomputation_but_not_another_number_format(tmp_path):
    """The former changes no bit, and is what helps where memory is short."""
    path = tmp_path / "config.json"
    claim_run(path, tiny(), started=False)
    with pytest.raises(UsageError, match="wq.float8: None -> 'tensorwise'"):
        claim_run(path, tiny("fiddler:float8"), started=True)
    edits = ("tag:ActivationCheckpointing=selective", "fiddler:multi_token(1)")
    with pytest.raises(UsageError, match="of another config: model.multi_token"):
        claim_run(path, tiny(*edits), started=True)
    recomputed = tiny(edits[0], "set:parallelizer.recomputation.save_every=1")
    assert claim_run(path, recomputed, started=True) == [
        "model.layers[0].activation_checkpointing: 'none' -> 'selective'",
        "model.layers[1].activation_checkpointing: 'none' -> 'selective'",
        "parallelizer.recomputation.save_every: 2 -> 1",
    ]

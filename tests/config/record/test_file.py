"""Configs written and read back."""

import functools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.static import problems
from nanigpt.config.compose.flag import compose
from nanigpt.config.record import names
from nanigpt.config.record.file import differences, dump, load
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import choose_run, claim_run, load_run
from nanigpt.config.view.show import render
from nanigpt.errors import UsageError
from nanigpt.models.linear import Linear
from tests.config.components import Anything, Color, Part, Point, Side, pair, whole
from tests.support import each_recipe, tiny


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
    with pytest.raises(UsageError, match="cannot be recorded"):
        dump(cfg)


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
    assert '"module": "torch.nn", "name": "Linear"' in recorded
    assert "torch.nn.modules" not in recorded


@pytest.mark.parametrize(
    "module, symbol",
    [
        ("os", "system"),
        ("subprocess", "run"),
        ("antigravity", "fly"),
        ("builtins", "eval"),
        ("nanigpt.training.checkpoint", "shutil.rmtree"),
        ("fiddle._src.absl_flags.utils", "importlib.import_module"),
        ("torch", "load"),
        ("nanigpt.cli.main", "main"),
        ("nanigpt.config.record.run_config", "claim_run"),
        ("nanigpt", "cli.main.main"),
        ("nanigpt", "config.record.load"),
        ("nanigpt", "files.write_atomically"),
        ("nanigpt", "__main__.run_console"),
        ("nanigpt.__main__", "run_console"),
        ("nanigpt.files", "write_atomically"),
        ("nanigpt.parallel.world", "start_world"),
        ("nanigpt.training.trackers.json_lines", "drop_rows_after"),
        ("nanigpt.data.dataset", "tokenize_corpus"),
        ("nanigpt.training.checkpoint", "_remove"),
        ("nanigpt.models.decoder", "Decoder.__class__"),
        ("nanigpt.models.decoder", "Decoder.forward"),
        ("nanigpt.models.decoder", "Decoder.__init__.__globals__"),
        ("nanigpt.optim.adamw", "adamw.__class__"),
        ("nanigpt.optim.adamw", "torch.load"),
        ("torch", "save"),
        ("torch", "from_file"),
        ("torch", "hub.load"),
        ("torch.nn.functional", "importlib.import_module"),
        ("fiddle.absl_flags", "Config"),
        ("builtins", "type"),
    ],
)
def test_a_config_file_names_only_what_is_allowed(tmp_path, module, symbol):
    recorded = json.loads(dump(fdl.Config(Linear, in_dim=1)))

    def replace(node):
        if isinstance(node, dict):
            if node.get("name") == "Linear":
                node |= {"module": module, "name": symbol}
            for child in node.values():
                replace(child)
        elif isinstance(node, list):
            for child in node:
                replace(child)

    replace(recorded)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(recorded))
    known = set(sys.modules)
    with pytest.raises(UsageError, match=f"names {module}.{symbol}, which a config file may not"):
        load(path)
    assert not {"antigravity", "nanigpt.__main__"} & (set(sys.modules) - known)


def test_importing_main_runs_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import nanigpt.__main__"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"root": 3, "objects": {}}', "nonsense"])
def test_what_is_not_a_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="config"):
        load(path)


def damaged(recorded: str, *, seed: int) -> str:
    """A record in which one place is missing, or holds what does not belong there."""
    rng, record = random.Random(seed), json.loads(recorded)

    def places(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            if isinstance(value[key], (dict, list)):
                yield from places(value[key])

    all_places = list(places(record))
    holder, key = rng.choice(all_places)
    other, other_key = rng.choice(all_places)
    wrong = rng.choice([None, 7, -1, "zz", [1], {"a": 1}, other[other_key], "delete"])
    if wrong == "delete":
        del holder[key]
    else:
        holder[key] = json.loads(json.dumps(wrong))
    return json.dumps(record)


def test_a_damaged_record_is_refused_or_can_be_shown(tmp_path, tests_allowed):
    cfg = whole()
    cfg.parts.append(fdl.Partial(Part, size=2))
    recorded, path = dump(cfg), tmp_path / "config.json"
    refused = 0
    for seed in range(300):
        path.write_text(damaged(recorded, seed=seed))
        try:
            loaded = load(path)
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            render(loaded)
            problems(loaded)
    assert 100 < refused < 300


@pytest.mark.parametrize(
    "name, edit, message",
    [
        ("deep", lambda record: "[" * 100_000 + "]" * 100_000, "nests deeper"),
        ("circular", None, "nests deeper than .*, or holds itself"),
        ("tag", ('"Rate"', '"Part"'), r"not a config .*: parts\[0\]: .* are not tags"),
        ("argument", ('"rate"', '"ratio"'), r"parts\[0\]: .*Part'> takes no 'ratio'"),
    ],
)
def test_damage_that_reading_does_not_meet(name, edit, message, tmp_path, tests_allowed):
    text = dump(whole())
    if name == "circular":
        record = json.loads(text)
        record["objects"]["list_1"]["items"][0][1] = record["root"]
        text = json.dumps(record)
    else:
        text = text.replace(*edit) if isinstance(edit, tuple) else edit(text)
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load(path)


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

"""Configs written and read back."""

import json
import sys

import fiddle as fdl
import pytest
import torch

from nanigpt.config.flag import compose
from nanigpt.config.record import differences, dump, load
from nanigpt.config.registry import recipes
from nanigpt.config.run_config import choose_run, claim_run, load_run
from nanigpt.errors import UsageError
from nanigpt.models.linear import Linear
from tests.config.components import Part, whole
from tests.support import tiny


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_loads_back_equal(name, tmp_path):
    cfg = compose([f"config:{name}"])
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    loaded = load(path)
    assert loaded == cfg
    layers = loaded.model.layers
    assert len({id(layer.attention.rope) for layer in layers}) == 1
    assert len({id(layer.attention.wq) for layer in layers}) == len(layers)
    assert dump(loaded) == dump(cfg)


def test_callables_and_dtypes_are_recorded(tmp_path):
    cfg = tiny("set:model.embedding.compute_dtype=bf16")
    path = tmp_path / "config.json"
    path.write_text(dump(cfg))
    assert load(path).model.embedding.compute_dtype is torch.bfloat16
    assert fdl.get_callable(load(path).optimizer) is fdl.get_callable(cfg.optimizer)


def test_a_lambda_cannot_be_recorded():
    cfg = tiny()
    cfg.loss = lambda logits, labels: 0
    with pytest.raises(UsageError, match="cannot be recorded"):
        dump(cfg)


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
        ("nanigpt.config.run_config", "claim_run"),
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
    assert "antigravity" not in set(sys.modules) - known


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"root": 3, "objects": {}}', "nonsense"])
def test_what_is_not_a_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="config"):
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
    logging = tiny("set:steps=40", "set:metrics.log_interval=3")
    assert claim_run(recorded, logging, started=True, may_change=("metrics",)) == [
        "metrics.log_interval: 10 -> 3",
        "steps: 30 -> 40",
    ]
    with pytest.raises(UsageError, match=r"allowed would be: metrics.log_interval: 3 -> 10"):
        claim_run(recorded, other, started=True, may_change=("metrics",))
    assert load_run(str(tmp_path / "a")) == logging
    claim_run(recorded, other, started=True, allow_config_change=True)
    assert load_run(str(tmp_path / "a")) == other
    with pytest.raises(UsageError, match="no run there; known: a"):
        load_run(str(tmp_path / "b"))

"""`--config` directives."""

import os

import fiddle as fdl
import pytest
from absl import flags

from nanigpt.config import registry
from nanigpt.config.compose.flag import compose, define_config_flag, recipe_name
from nanigpt.config.record.file import dump
from nanigpt.errors import UsageError
from tests.support import tiny


def parse(*arguments, default="config:llama3_debug"):
    values = flags.FlagValues()
    define_config_flag(values, default_directive=default)
    values(["program", *arguments])
    return values


def test_the_default_recipe():
    assert parse().config == compose(["config:llama3_debug"])


def test_edits_without_a_base_edit_the_default():
    assert parse("--config=set:steps=40").config.steps == 40


def test_order_counts():
    directives = [
        "--config=config:llama3_debug",
        "--config=set:steps=40",
        "--config=fiddler:steps(60)",
    ]
    assert parse(*directives).config.steps == 60
    assert parse(directives[0], directives[2], directives[1]).config.steps == 40


def test_reading_twice_gives_the_same_config_once():
    values = parse("--config=config:llama3_debug", "--config=set:steps=40")
    assert values.config is values.config


def test_a_failed_directive_fails_again():
    values = parse("--config=config:llama3_debug", "--config=set:stepz=40", "--config=set:steps=50")
    for _ in range(2):
        with pytest.raises(UsageError, match="did you mean 'steps'"):
            _ = values.config


def test_a_recorded_config_is_a_base(tmp_path):
    path = tmp_path / "config.json"
    cfg = tiny("set:steps=33")
    path.write_text(dump(cfg))
    assert parse(f"--config=config_file:{path}").config == cfg
    assert parse(f"--config=config_file:{path}", "--config=set:steps=9").config.steps == 9


def test_legacy_flags_of_fiddle_are_unknown():
    with pytest.raises(flags.UnrecognizedFlagError):
        parse("--fdl_set=steps=3")


def test_nothing_is_evaluated(tmp_path):
    path = tmp_path / "made"
    for directive in (
        f"fiddler:steps(open({str(path)!r}, 'w'))",
        f"set:steps=open({str(path)!r}, 'w')",
        f"set:schedule=@linear(open({str(path)!r}, 'w'))",
    ):
        with pytest.raises(UsageError, match="expected int, not str"):
            compose(["config:llama3_debug", directive])
    assert not path.exists()


def test_arguments_are_typed_by_annotation():
    cfg = compose(["config:llama3_debug", "fiddler:steps(2**5)", "set:optimizer=@adamw(lr=1)"])
    assert cfg.steps == 32
    assert (cfg.optimizer.lr, type(cfg.optimizer.lr)) == (1.0, float)


def test_a_fiddler_that_does_not_fit_is_one_message(monkeypatch):
    def fiddle_moe(cfg, n: int):
        cfg.model.experts.n = n

    monkeypatch.setitem(registry._fiddlers, "fiddle_moe", fiddle_moe)
    with pytest.raises(
        UsageError, match=r"fiddler fiddle_moe failed at .*\.py:\d+: AttributeError: .*experts"
    ):
        compose(["config:llama3_debug", "fiddler:fiddle_moe(3)"])


def test_components_are_exchanged():
    cfg = compose(
        [
            "config:llama3_debug",
            "set:schedule=@warmup_stable_decay(warmup_steps=5)",
            "set:optimizer=@adamw(lr=0.25)",
            "tag:WeightDecay=0.5",
            "set:steps=10",
        ]
    )
    trainer = fdl.build(cfg)
    assert type(trainer.schedule).__name__ == "WarmupStableDecay"
    assert trainer.optimizer.keywords == {"lr": 0.25, "weight_decay": 0.5}


def test_one_tag_reaches_data_and_model():
    trainer = fdl.build(compose(["config:llama3_1b", "tag:SequenceLength=2**9"]))
    assert trainer.data.sequence_length == trainer.model.max_sequence_length == 512


def test_a_run_is_a_base(tmp_path):
    (tmp_path / "config.json").write_text(dump(tiny("set:steps=33")))
    assert compose([f"run:{tmp_path}"]).steps == 33
    assert recipe_name([f"run:{tmp_path}"]) == tmp_path.name


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text(dump(tiny("set:steps=33")))
    assert compose(["run:~/runs/mine"]).steps == 33
    assert compose(["config_file:~/runs/mine/config.json"]).steps == 33
    with pytest.raises(UsageError, match=f"try: ls {tmp_path}/runs$"):
        compose(["run:~/runs/other"])


def test_run_names():
    assert recipe_name(["config:llama3_debug", "set:steps=3"]) == "llama3_debug"
    assert recipe_name(["config_file:runs/mine/config.json"]) == "mine"
    assert recipe_name(["config_file:mine.json"]) == "mine"
    for odd in ("../config.json", "./config.json", "/config.json", "config.json"):
        name = recipe_name([f"config_file:{odd}"])
        assert name and "/" not in name and name not in (".", "..")


@pytest.mark.parametrize("recipe", ["llama3_debug", "llama3_1b", "llama3_405b"])
def test_fiddlers_work_on_every_recipe(recipe):
    cfg = compose(
        [
            f"config:{recipe}",
            "fiddler:steps(1000)",
            "tag:SequenceLength=128",
            "tag:VocabSize=1000",
            "set:data.tokenizer=@huggingface_tokenizer('tokenizer.json')",
        ]
    )
    trainer = fdl.build(cfg)
    assert trainer.steps == 1000
    assert trainer.schedule.warmup_steps < 1000
    assert trainer.data.sequence_length == trainer.model.max_sequence_length == 128
    assert trainer.model.vocab_size == trainer.model.head.out_dim == 1000
    assert trainer.data.tokenizer.path == "tokenizer.json"


def test_a_source_makes_a_base_of_a_path(monkeypatch):
    seen = []

    def elsewhere(path):
        seen.append(path)
        return compose(["config:llama3_debug"])

    monkeypatch.setattr(registry, "_sources", registry.sources())
    registry.source(elsewhere)
    cfg = compose(["elsewhere:~/models/mine", "set:steps=40"])
    assert cfg.steps == 40
    assert seen == [os.path.expanduser("~/models/mine")]
    assert recipe_name(["elsewhere:models/mine"]) == "mine"
    with pytest.raises(UsageError, match="a second base after 'config:llama3_debug'"):
        compose(["config:llama3_debug", "elsewhere:models/mine"])

"""`--config` directives."""

import fiddle as fdl
import pytest
from absl import flags

from nanigpt.config.flag import compose, define_config_flag, recipe_name
from nanigpt.config.record import dump
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


@pytest.mark.parametrize(
    "directives, message",
    [
        (["config:lama3_debug"], r"^--config=config:lama3_debug: unknown recipe .*did you mean 'llama3_debug'"),
        (["config:os.system"], "os.system.*expected a name"),
        (["config:llama3_debug(3)"], r"too many positional arguments; expected llama3_debug\(\)"),
        (["config:llama3_debug", "fiddler:debug_scal"], "unknown fiddler .*did you mean 'debug_scale'"),
        (["config:llama3_debug", "fiddler:steps"], r"missing a required argument: 'n'; expected steps\(n"),
        (["config:llama3_debug", "fiddler:steps('x')"], "n='x': expected int"),
        (["config:llama3_debug", "fiddler:steps(0)"], "expected at least 1"),
        (["config:llama3_debug", "fiddler:steps(open('x'))"], "expected a name, or a name with literal"),
        (["config:llama3_debug", "set:optimizer.lrr=1"], r"optimizer \(adamw\) has no 'lrr'; did you mean 'lr'"),
        (["config:llama3_debug", "config:llama3_1b"], "a second base"),
        (["fiddler:debug_scale"], "expected config:RECIPE, config_file:PATH or run:DIR first"),
        (["confg:llama3_debug"], "did you mean 'config'"),
        (["llama3_debug"], "expected one of config:..., config_file:..., run:..., fiddler:..., set:..., tag:..."),
        (["config:llama3_debug", "tag:LearningRat=1"], "no argument of this config has the tag 'LearningRat'; did you mean 'LearningRate'"),
        (["config:llama3_debug", "tag:LearningRate"], "expected TAG=VALUE"),
        (["config:llama3_debug", "set:schedule=@linaer"], "unknown component 'linaer'; did you mean 'linear'"),
        (["config:llama3_debug", "set:schedule=@adamw"], "schedule=@adamw: expected Schedule, not adamw"),
        (["config:llama3_debug", "set:optimizer=@linear"], "optimizer=@linear: expected a callable, not Linear"),
        (["config:llama3_debug", "set:schedule=@linear(3, 4, 5)"], r"too many positional arguments; expected linear\(warmup_steps"),
        (["run:/nowhere"], "--run=/nowhere: no run there"),
        (["config_file:/nowhere.json"], "no config file '/nowhere.json'"),
        ([], "expected config:RECIPE"),
    ],
)  # fmt: skip
def test_mistakes(directives, message):
    with pytest.raises(UsageError, match=message):
        compose(directives)


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

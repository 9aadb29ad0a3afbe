"""nanigpt count: one config, and the table of recipes."""

import json

import pytest

from nanigpt.cli import count
from nanigpt.cli.main import main
from nanigpt.config import registry
from nanigpt.config.registry import recipes
from tests.models.test_recipes import PARAMETERS
from tests.support import flags


def printed(capsys, *arguments):
    assert main(["count", *arguments]) == 0
    return capsys.readouterr().out


def test_one_config_as_text(capsys):
    assert printed(capsys, *flags("config:llama3_8b")) == (
        "parameters                    8,030,261,248\n"
        "  active                      8,030,261,248\n"
        "  embedding                     525,336,576\n"
        "training FLOPs per token     57,912,852,480  in sequences of 8,192\n"
        "KV cache per position               131,072  bytes in bfloat16\n"
        "KV cache of 8,192 positions   1,073,741,824  bytes, 1 GiB\n"
    )
    tied = printed(capsys, *flags("config:qwen3_debug"))
    assert "  embedding                   524,288  the head's too\n" in tied


def test_one_config_as_json(capsys):
    asked = ("--format=json", "--sequence_length=100", "--positions=50")
    found = json.loads(
        printed(capsys, *flags("config:llama3_8b", "tag:ComputeDType=float32"), *asked)
    )
    products = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert found == {
        "parameters": {
            "total": 8_030_261_248,
            "active": 8_030_261_248,
            "embedding": 525_336_576,
            "tied": False,
            "trainable": 8_030_261_248,
        },
        "sequence_length": 100,
        "flops_per_token": 6 * products + 12 * 32 * 4096 * 100,
        "cache_dtype": "float32",
        "cache_bytes_per_position": 262_144,
        "positions": 50,
        "cache_bytes": 50 * 262_144,
    }


def test_a_longer_model_has_more_positions(capsys):
    longer = flags("config:llama3_debug", "tag:SequenceLength=512")
    found = json.loads(printed(capsys, *longer, "--positions=512", "--format=json"))
    assert (found["sequence_length"], found["positions"]) == (512, 512)


SOME = ("llama3_1b", "llama3_8b", "llama3_8b_on_8", "llama3_debug", "qwen3_0_6b", "qwen3_debug")


def test_recipes_are_in_order_of_family_and_size(capsys, monkeypatch):
    """All of them, in Markdown, are compared with README.md in tests/golden."""
    monkeypatch.setattr(count, "recipes", lambda: {name: recipes()[name] for name in SOME[::-1]})
    rows = json.loads(printed(capsys, "--format=json"))
    assert [(row["family"], row["recipe"]) for row in rows] == [
        ("Llama 3", "llama3_1b"),
        ("Llama 3", "llama3_8b"),
        ("Llama 3", "llama3_8b_on_8"),
        ("Qwen3", "qwen3_0_6b"),
        ("Llama 3", "llama3_debug"),
        ("Qwen3", "qwen3_debug"),
    ]
    for row in rows:
        assert row["parameters"]["total"] == PARAMETERS[row["recipe"]]
    lines = printed(capsys).splitlines()
    assert len(lines) == 2 + len(rows) and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == [
        *("Llama 3", "`llama3_8b`", "8,030,261,248", "8,030,261,248", "525,336,576"),
        *("57.91", "8,192", "131,072"),
    ]


def test_a_recipe_that_does_not_build_is_named(capsys, monkeypatch):
    def broken():
        cfg = recipes()["llama3_debug"]()
        cfg.global_batch_size = 0
        return cfg

    assert "broken" not in recipes()
    monkeypatch.setitem(registry._recipes, "broken", broken)
    monkeypatch.setattr(count, "recipes", lambda: {"broken": broken})
    assert main(["count"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("nanigpt: recipe broken: global_batch_size=0"), message


def test_help_on_configs_needs_none(capsys):
    assert "llama3_8b" in printed(capsys, "--config=help")


@pytest.mark.parametrize("asked", ["--sequence_length=257", "--positions=257"])
def test_more_positions_than_the_model_has_are_refused(capsys, asked):
    assert main(["count", *flags("config:llama3_debug"), asked]) == 2
    assert f"{asked}: the model has 256 positions" in capsys.readouterr().err

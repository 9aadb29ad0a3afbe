"""What `--config=help` lists."""

from typing import Annotated

import fiddle as fdl

from nanigpt.cli.main import main
from nanigpt.config.view.listing import listing
from nanigpt.config.view.show import render
from tests.config.components import whole


def test_names_signatures_and_meanings():
    text = listing()
    assert "  llama3_8b(...)  " in text
    assert "  arguments for Llama 3:\n    sequence_length, dim, n_layers," in text
    assert "  dial(depth: int = 12, vocab_size: int = 512, sequence_length: int = 1024)\n" in text
    assert "Train Llama 3.1 8B, with 8.03 B parameters." in text
    assert "  steps(n: int)  " in text
    assert "huggingface_tokenizer(path: str)" in text
    assert "Tags" not in text


def test_a_meaning_is_one_whole_sentence(monkeypatch):
    def wrapped():
        """Do something that takes more
        than one line, as in 3.1. Then more."""

    monkeypatch.setattr("nanigpt.config.view.listing.fiddlers", lambda: {"wrapped": wrapped})
    assert "  Do something that takes more than one line, as in 3.1.\n" in listing()
    every = [line for line in listing().splitlines() if line.endswith((".", "?", "!"))]
    assert len(every) > 40


def test_tags_with_their_values():
    cfg = whole()
    cfg.parts[1].rate = 2.0
    assert "Rate = 0.5, 2.0" in listing(cfg)
    assert "A rate." in listing(cfg)


def test_every_command_with_a_config_has_it(capsys):
    directives = ["--config=config:llama3_1b", "--config=tag:LearningRate=0.25", "--config=help"]
    for command in ("train", "show", "check", "fingerprint"):
        assert main([command, *directives]) == 0
        assert "LearningRate = 0.25" in capsys.readouterr().out
    assert main(["show", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--why" in out and "--config=help lists recipes" in out and "qwen3_0_6b" not in out


def test_units():
    class Unit:
        unit = "apples"

    def eat(n: Annotated[int, Unit()], speed: float = 1.0, what: Annotated[str, Unit()] = "x"):
        return n, speed, what

    assert render(fdl.Config(eat, n=3)).splitlines() == [
        "eat",
        "  n = 3 apples",
        "  speed = 1.0",
        "  what = 'x'",
    ]

"""Wrong command lines, each with the whole of its message: tests/cli/mistakes.txt.

A paragraph there is `$ ARGUMENTS` and what standard error says; {tmp} stands for a folder, and
`.py:N` for a line of a recipe.
"""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from nanigpt.cli.main import main
from nanigpt.config.compose.flag import compose
from nanigpt.config.record.file import dump

TEXT = (Path(__file__).parent / "mistakes.txt").read_text()
CASES = [case.partition("\n") for case in TEXT.removeprefix("$ ").split("\n$ ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes")
    (path / "broken.json").write_text("{")
    recorded = dump(compose(["config:llama3_debug"]))
    for module, name in (("os", "system"), ("subprocess", "run"), ("antigravity", "fly")):
        text = recorded.replace('"nanigpt.optim.adamw:adamw"', f'"{module}:{name}"')
        (path / f"{module}.json").write_text(text)
    run = path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text(recorded)
    return path


@pytest.mark.parametrize(
    "line, message", [(line, message) for line, _, message in CASES], ids=[c[0] for c in CASES]
)
def test_message(line, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(shlex.split(line.replace("{tmp}", str(folder)))) == 2
    told = re.sub(r"\.py:\d+", ".py:N", capsys.readouterr().err.replace(str(folder), "{tmp}"))
    assert told == message.rstrip("\n") + "\n"


def directives(arguments):
    return [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]


def test_flags_that_mend_a_config_are_right():
    """Those after a check come on top of the command's own."""
    checked = 0
    for line, _, message in CASES:
        tries = [t[7:] for t in message.splitlines() if t.strip().startswith("try: ")]
        tried = [directives(shlex.split(text)) for text in tries if "nanigpt show" not in text]
        if line.startswith("check") and any(tried):
            given = directives(shlex.split(line))
            base = [] if given[0].startswith("config:") else ["config:llama3_debug"]
            compose([*base, *given, *itertools.chain(*tried)])
            checked += 1
    assert checked >= 5


def test_there_are_many():
    assert len(CASES) >= 60

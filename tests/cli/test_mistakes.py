"""Wrong command lines, each with the whole of its message: tests/cli/mistakes.txt.

A paragraph there is `$ ARGUMENTS` and what standard error says; {tmp} stands for a folder, and
`.py:N` for a line of a recipe.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from nanigpt.cli.main import main, parse
from nanigpt.config import registry
from nanigpt.config.compose.flag import compose
from nanigpt.config.record.file import dump

TEXT = (Path(__file__).parent / "mistakes.txt").read_text()
CASES = [case.partition("\n") for case in TEXT.removeprefix("$ ").split("\n$ ")]

# Files of a user's own, for `--import`.
CODE = {
    "project/recipes.py": "@recipe\ndef my_recipe():\n    pass\n",
    "project/edits.py": "@registry.fiddler\ndef my_fiddler(cfg):\n    pass\n",
    "project/layers.py": "class MyLayer:\n    pass\n",
    "my_code.py": "def my_function():\n    pass\n",
    "other/my_code.py": "",
    "other/json.py": "",
    "my-code.py": "",
    "fails.py": "def f():\n    return 1 / 0\n\n\nf()\n",
    "needs.py": "import a_package_that_is_missing\n",
    "no_syntax.py": "def f(:\n",
    "leaves.py": "raise SystemExit(3)\n",
    "twice.py": (
        "from nanigpt.config.registry import recipe\n\n\n@recipe\ndef llama3_debug():\n    pass\n"
    ),
}

# A config.json of Hugging Face, and fields that change it, by folder.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}
HUGGING_FACE = {
    "hf": {},
    "gpt2": {"model_type": "gpt2"},
    "mistral": {"sliding_window": 32, "hidden_act": "gelu"},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "headless": {"num_key_value_heads": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes")
    (path / "broken.json").write_text("{")
    recorded = dump(compose(["config:llama3_debug"]))
    for module, name in (("os", "system"), ("subprocess", "run"), ("antigravity", "fly")):
        text = recorded.replace('"nanigpt.optim.adamw:adamw"', f'"{module}:{name}"')
        (path / f"{module}.json").write_text(text)
    for name, text in CODE.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    for name, fields in HUGGING_FACE.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps({**LLAMA, **fields}))
    (path / "titan.toml").write_text("[training]\nsteps = 3\n")
    (path / "flux.toml").write_text('[training]\nsteps = 3\n[model]\nname = "flux"\n')
    (path / "tune.yaml").write_text("model: {_component_: torchtune.models.gemma.gemma_2b}\n")
    llama = "model: {_component_: torchtune.models.llama3_2.llama3_2_1b}\n"
    (path / "llama.yaml").write_text(llama)
    (path / "other.yaml").write_text("wibble: 3\n")
    run = path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text(recorded)
    return path


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Forget what a command imported."""
    monkeypatch.setattr(registry, "_imports", {})
    monkeypatch.setattr(registry, "_flags", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize(
    "line, message", [(line, message) for line, _, message in CASES], ids=[c[0] for c in CASES]
)
def test_message(line, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(shlex.split(line.replace("{tmp}", str(folder)))) == 2
    told = re.sub(r"\.py:\d+", ".py:N", capsys.readouterr().err.replace(str(folder), "{tmp}"))
    assert told == message.rstrip("\n") + "\n"


def advice(message):
    """Return the commands and the flags that a message says to try."""
    lines = [line.strip() for line in message.splitlines()]
    return [line.removeprefix("try: ") for line in lines if line.startswith("try: ")]


def are_flags(text):
    return text.lstrip("'").startswith("--")


COMMANDS = {text for _, _, message in CASES for text in advice(message) if not are_flags(text)}
FLAGS = [case for case in CASES if any(map(are_flags, advice(case[2])))]
PRINTING = ("show", "check", "fingerprint", "count", "diff")


@pytest.mark.parametrize("text", sorted(COMMANDS))
def test_a_command_to_try_is_right(text, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(text.replace("{tmp}", str(folder)))
    if program == "ls":
        assert [Path(argument).exists() for argument in arguments] == [True]
        return
    assert program == "nanigpt"
    if "--help" in arguments or arguments[0] in PRINTING:
        assert main(arguments) == 0
    elif arguments[0] == "import-config":
        assert main(arguments[:2]) == 0  # without the file that it writes
    else:
        parse(arguments[0], arguments[1:])
        configs = [a for a in arguments if a.startswith(("--config=", "--import="))]
        assert main(["show", *configs]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message", [(line, message) for line, _, message in FLAGS], ids=[c[0] for c in FLAGS]
)
def test_flags_to_try_are_right(line, message, folder, capsys, monkeypatch):
    """They take the place of the flag that the message begins with, or else come on top."""
    monkeypatch.chdir(folder)
    command, *given = shlex.split(line.replace("{tmp}", str(folder)))
    tried = [text.replace("{tmp}", str(folder)) for text in advice(message) if are_flags(text)]
    flags = [flag for text in tried for flag in shlex.split(text)]
    said = message.removeprefix("nanigpt: ").replace("{tmp}", str(folder))
    wrong = [flag for flag in given if flag[:2] == "--" and said.startswith(f"{flag}: ")]
    if len(flags) > 1 and wrong:  # the whole command line in another order
        wrong = [flag for flag in given if flag.startswith("--config=")]
    if any(flag.startswith("--config=config:") for flag in flags):  # instead of a `set:`
        wrong += [
            flag for flag in given if f"<- {flag}" in said or flag.startswith("--config=config")
        ]
    kept = [flag for flag in given if flag not in wrong]
    bases = [flag for flag in flags if re.match("--config=(?!set|tag|fiddler)", flag)]
    edits = [flag for flag in flags if flag not in bases]
    if command in ("train", "generate", "eval", "convert", "launch", "sweep"):
        command, kept = "check", [flag for flag in kept if flag.startswith("--config=")]
        edits = [flag for flag in edits if flag.startswith(("--config=", "--import="))]
    status = main([command, *bases, *kept, *edits])
    told = capsys.readouterr().err
    # There may be other mistakes, but not this one.
    assert status == 0 or message.partition("\n")[0] not in told, told


def test_there_are_many():
    assert len(CASES) >= 60


def test_a_message_cannot_move_the_cursor(folder, capsys):
    record = json.loads(dump(compose(["config:llama3_debug"])))
    record["classes"]["Loader"]["name"] = "\x1b[2Jos:system\u202e"
    path = folder / "escapes.json"
    path.write_text(json.dumps(record))
    assert main(["check", f"--config=config_file:{path}"]) == 2
    told = capsys.readouterr().err
    assert r"names \x1b[2Jos:system\u202e, which" in told
    assert told.replace("\n", "").isprintable()

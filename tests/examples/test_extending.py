"""The examples of docs/extending.md are one module, whose recipes train on one process and on two."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import flags

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
LANGUAGE = ("config:my_language_model", "fiddler:tensorboard(False)")
REGRESSION = ("config:my_regression", "fiddler:tensorboard(False)")

RUNS = '''"""Run by test_extending.py: [torchrun -m] runs FOLDER"""
import sys
from pathlib import Path
import my_project
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.run_directory import RunDirectory

world = start_world("cpu")
for name in ("my_language_model", "my_regression"):
    for mesh in {1: ("one",), 2: ("fsdp", "tp")}[world.size]:
        edits = ["tag:TensorParallel=2"] if mesh == "tp" else []
        edits += ["set:task.sampler.max_new_tokens=3"] if name == "my_language_model" else []
        trainer = build(compose([f"config:{name}", "fiddler:tensorboard(False)", *edits]))
        trainer.run(RunDirectory(Path(sys.argv[1]) / f"{name}-{mesh}"), world)
stop_world()
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory, token_cache):
    """A folder with the page's module, as an installed distribution has it."""
    folder = tmp_path_factory.mktemp("extending")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 15
    (folder / "my_project.py").write_text("\n\n".join(blocks))
    (folder / "runs.py").write_text(RUNS)
    entry_points = re.search(r"^    \[project\.entry-points\.nanigpt\]\n    (.*)$", PAGE.read_text(),
                             re.MULTILINE)  # fmt: skip
    information = folder / "my_project-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_project\nVersion: 1.0\n")
    named = entry_points[1].replace('"', "")
    (information / "entry_points.txt").write_text(f"[nanigpt]\n{named}\n")
    return folder


def run(project, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder, name, mesh):
    text = (folder / f"{name}-{mesh}" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run(project, "-m", "runs", str(folder))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(project, *launcher, "-m", "runs", str(folder))
    return folder


@pytest.mark.parametrize("mesh", ["fsdp", "tp"])
@pytest.mark.parametrize("name", ["my_language_model", "my_regression"])
def test_the_examples_train_as_on_one_process(trained, name, mesh):
    expected, found = rows(trained, name, "one"), rows(trained, name, mesh)
    assert len(found) == len(expected) >= 20
    assert expected[-1]["val_loss"] < 0.9 * expected[0]["loss"]
    for want, got in zip(expected, found, strict=True):
        for key in {"loss", "grad_norm", "val_loss", "weights_norm"} & want.keys():
            assert got[key] == pytest.approx(want[key], rel=2e-4), (want["step"], key)


def test_a_tracker_an_evaluation_and_a_policy_of_the_page_are_used(trained):
    last = rows(trained, "my_language_model", "one")
    assert float((trained / "my_language_model-one" / "best.txt").read_text()) == min(
        row["loss"] for row in last
    )
    assert last[-1]["weights_norm"] > 0


def test_the_examples_are_imported_by_a_flag(project, tmp_path):
    """Where nothing names them as an entry point."""
    shutil.copy(project / "my_project.py", tmp_path)
    shown = re.findall(r"^    nanigpt train (--import=.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(shown) == 3
    script = (
        "import shlex, sys; from nanigpt.cli.main import main; "
        "sys.exit(any([main(['check', *shlex.split(line)]) for line in sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *shown],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no problems") == 3


def test_the_examples_are_used_from_the_command_line(project):
    split, edits = (
        "tag:TensorParallel=2",
        ("fiddler:squared_networks", "set:data.tokenizer=@letters"),
    )
    wanted = (
        ["check", "--ranks=2", *flags(*LANGUAGE, split)],
        ["check", "--ranks=2", *flags(*REGRESSION, split)],
        ["check", *flags("config:llama3_debug", *edits)],
        ["count", "--format=json", *flags(*LANGUAGE)],
        ["count", "--format=json", *flags(*REGRESSION)],
    )
    script = ("-m", "tests.examples.outside_commands", json.dumps(wanted))
    done = json.loads(run(project, *script))
    assert [status for status, _, _ in done] == [0] * len(wanted), done
    *checks, language, regression = (out for _, out, _ in done)
    assert all(out.startswith("no problems") for out in checks)
    counts = json.loads(language)["parameters"]
    assert counts["total"] - counts["trainable"] == 2 * 32 * 64  # the two frozen matrices
    assert json.loads(language)["flops_per_token"] > 0
    assert json.loads(regression)["flops_per_sample"] > 0

"""A research project with folders experiments/, fiddlers/ and tests/ of its own, not installed."""

import csv
import json
import shutil
import subprocess

import pytest

from tests.support import finish, metrics, nanigpt, start, succeed

RECIPES = '''"""Recipes of the project."""
import fiddle as fdl
import torch
from torch import nn

from nanigpt import tags
from nanigpt.config.registry import recipe
from nanigpt.experiments.llama3 import llama3_debug
from fiddlers.mine import quickly


class Doubled(nn.Module):
    """Scale a linear layer."""

    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int, factor: float = 2.0):
        super().__init__()
        self.factor = factor
        self.inner = nn.Linear(dim, dim)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.factor * self.inner(x_BLD)


@recipe
def mine(factor: float = 2.0) -> fdl.Config:
    """Train a small model with layers of the project."""
    from nanigpt.fiddlers.scale import debug_scale

    cfg = llama3_debug()
    debug_scale(cfg)
    quickly(cfg)
    dim = cfg.model.embedding.dim
    cfg.model.layers[0].feed_forward = fdl.Config(Doubled, dim=dim, factor=factor)
    return cfg
'''

FIDDLERS = '''"""Edits of the project."""
from nanigpt.config.registry import fiddler


@fiddler
def quickly(cfg):
    """Train two steps, and sample one token."""
    cfg.steps, cfg.schedule.warmup_steps = 2, 0
    cfg.task.sampler.max_new_tokens = 1
    cfg.evaluations["val"].n_samples = 1
'''

# With the folder of the project as the working directory, whose `tests` is another one than this.
COMMANDS = """
import contextlib, io, json, sys
from nanigpt.cli.main import main

done = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    done.append([arguments, status, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""

IMPORT = "--import=experiments"
MINE = (
    IMPORT,
    "--config=config:mine",
    "--config=set:model.layers[1].feed_forward=@Doubled(dim=128)",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in ("experiments", "fiddlers", "tests"):
        (folder / name).mkdir()
    (folder / "experiments" / "recipes.py").write_text(RECIPES)
    (folder / "fiddlers" / "mine.py").write_text(FIDDLERS)
    (folder / "tests" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return folder


@pytest.fixture(scope="module")
def declared(project, tmp_path_factory):
    """The same project, whose pyproject.toml has what the flag said."""
    folder = tmp_path_factory.mktemp("declared")
    shutil.copytree(project, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*runs"))
    (folder / "pyproject.toml").write_text('[tool.nanigpt]\nimport = ["experiments"]\n')
    return folder


def torchrun(folder, *arguments):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return succeed(finish(start(*launcher, *arguments, cwd=folder), 120))


def commands(folder, *lists):
    """Run commands one after the other in one process, which is not that of the tests."""
    done = json.loads(succeed(finish(start("-c", COMMANDS, json.dumps(lists), cwd=folder), 120)))
    return [subprocess.CompletedProcess(arguments, *rest) for arguments, *rest in done]


def test_training_looking_and_resuming(project):
    out = succeed(nanigpt("train", *MINE, "--run_dir=runs/mine", cwd=project))
    assert "step 2/2" in out
    run = project / "runs" / "mine"
    launch = json.loads((run / "launches.jsonl").read_text())
    assert launch["argv"] == ["train", *MINE, "--run_dir=runs/mine"]
    assert launch["imports"] == ["experiments"]
    rates = "--sweep=tag:LearningRate=[1e-3]"
    nested = ("--", *MINE[1:], "--run_dir=runs/launched")
    without, resumed, evaluated, checked, local, slurm, array = commands(
        project,
        ("train", "--config=config:mine"),
        ("train", "--run_dir=runs/mine", IMPORT),
        ("eval", "--run=runs/mine", IMPORT),
        ("check", "--run_dir=runs/mine", "--config=set:steps=4", IMPORT),
        ("launch", "--dry_run", IMPORT, "--nproc_per_node=1", *nested),
        ("launch", "--dry_run", IMPORT, "--on=slurm", *nested),
        ("sweep", *MINE, rates, "--dir=sweeps/array", "--slurm"),
    )
    assert without.returncode == 2
    assert without.stderr == (
        "nanigpt: --config=config:mine: unknown recipe 'mine'; experiments/recipes.py defines one; "
        f"add {IMPORT}\n  try: {IMPORT}\n"
    )
    assert succeed(resumed).splitlines()[0] == out.splitlines()[0]
    assert len(metrics(run)) == 2
    assert json.loads(succeed(evaluated).splitlines()[-1])["step"] == 2
    assert "no problems" in succeed(checked) and " 4 steps" in checked.stdout
    for launched in (local, slurm):
        assert f" train {IMPORT} --config=config:mine " in succeed(launched)
    assert "1 trials: sbatch " in succeed(array)
    assert f"sweep {IMPORT} --dir=" in (project / "sweeps" / "array" / "array.sbatch").read_text()


@pytest.mark.parametrize("kind", ["flag", "pyproject"])
def test_two_processes_and_a_sweep(kind, request):
    folder = request.getfixturevalue("project" if kind == "flag" else "declared")
    mine = MINE if kind == "flag" else MINE[1:]
    torchrun(folder, "-m", "nanigpt", "train", *mine, "--run_dir=runs/two")
    assert [row["step"] for row in metrics(folder / "runs" / "two")] == [1, 2]
    rates = "--sweep=tag:LearningRate=[1e-3,1e-2]"
    out = succeed(nanigpt("sweep", *mine, rates, "--dir=sweeps/mine", cwd=folder))
    best = next(line for line in out.splitlines() if line.startswith("best: "))
    assert best.startswith(f"best: {IMPORT} --config=" if kind == "flag" else "best: --config=")
    with open(folder / "sweeps" / "mine" / "results.csv") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["done", "done"]

"""Small runs, in this process and in others."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import pytest

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.models.init import initialize, materialize
from nanigpt.parallel.world import start_world
from nanigpt.training.run_directory import RunDirectory

# Of each family the small one, and of full size the one that builds soonest.
SOON = ("llama3_1b", "llama3_8b_on_8", "qwen3_0_6b", "qwen3_30b_a3b", "deepseek_v3_16b")
SOON += ("llama4_scout", "gpt_oss_20b")

TINY = ("config:llama3_debug", "fiddler:debug_scale")

# Edits of a run of which only the steps are looked at.
QUICK = ("set:evaluations[val].interval=100", "set:evaluations[val].n_samples=1")
QUICK += ("set:task.sampler.max_new_tokens=1", "fiddler:tensorboard(False)")


def each_recipe() -> list:
    """Parameters of a test of all recipes; those that differ in size only are in the deeper tier."""

    def marks(name: str) -> list:
        return [] if name in SOON or name.endswith("_debug") else [pytest.mark.slow]

    return [pytest.param(name, marks=marks(name)) for name in recipes()]


def tiny(*edits: str, recipe: str = "llama3_debug") -> fdl.Config:
    """A recipe at debug scale, with further edits."""
    return compose([f"config:{recipe}", "fiddler:debug_scale", *edits])


def built_model(cfg: fdl.Config, *, seed: int = 0):
    """The model of a run's config with initial weights, on the CPU."""
    model = build(cfg.model)
    materialize(model, "cpu")
    initialize(model, seed=seed)
    return model


def train(cfg: fdl.Config, path: Path, *, device: str = "cpu") -> list[dict]:
    """Trains in this process; returns the rows of metrics.jsonl."""
    build(cfg).run(RunDirectory(path), start_world(device))
    return metrics(path)


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]


def flags(*directives: str) -> list[str]:
    return [f"--config={d}" for d in directives]


def nanigpt(*arguments: str, timeout: float = 120, cwd=None) -> subprocess.CompletedProcess:
    """`python -m nanigpt ARGUMENTS` to its end."""
    return finish(start("-m", "nanigpt", *arguments, cwd=cwd), timeout)


def here(*arguments: str) -> subprocess.CompletedProcess:
    """`nanigpt ARGUMENTS` in this process, which need not start, nor import anything."""
    from nanigpt.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def torchrun(n: int, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess:
    """n processes over gloo, ended together; a failing rank's output is part of the result."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}")
    return finish(start(*launcher, *arguments), timeout)


def start(*arguments: str, cwd=None) -> subprocess.Popen:
    """A Python process in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float) -> subprocess.CompletedProcess:
    """Waits; on timeout kills the whole process group and fails with what it printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def succeed(done: subprocess.CompletedProcess) -> str:
    """Standard output of a process that must have exited with 0."""
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout

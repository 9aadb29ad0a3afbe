"""Launching: what is printed, and that it runs. A Slurm of three small programs runs its script."""

import importlib.util
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanigpt.cli.launching.plan import CLUSTER
from nanigpt.cli.main import main
from tests.support import TINY, finish, flags, metrics, nanigpt, start, succeed

SCRIPT = CLUSTER / "slurm.sbatch"
COMPONENT = CLUSTER / "torchx_component.py"
STEPS = 80


@pytest.fixture
def short(text_file):
    """Flags of a run of two steps."""
    return flags(*TINY, "fiddler:steps(2)", f"set:data.corpus.path={text_file}")


@pytest.fixture
def long(text_file):
    """Flags of a run that can be interrupted between its first checkpoint and its end."""
    steps = (f"fiddler:steps({STEPS})", "set:checkpointer.interval=5")
    return flags(*TINY, *steps, f"set:data.corpus.path={text_file}")


def printed(capsys, *arguments: str) -> list[str]:
    """The lines of a dry run."""
    assert main(["launch", "--dry_run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_one_node(capsys):
    assert printed(capsys, "--nproc_per_node=4", "train", "--run_dir=runs/a b") == [
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=4 "
        "--max-restarts=0 -m -- nanigpt train '--run_dir=runs/a b'"
    ]


def test_one_of_several_nodes(capsys):
    where = ("--nodes=2", "--nproc_per_node=2", "--rdzv_endpoint=node0:29500", "--rdzv_id=mine")
    assert printed(capsys, *where, "--", "train") == [
        f"{sys.executable} -m torch.distributed.run --nnodes=2 --rdzv-backend=c10d "
        "--rdzv-endpoint=node0:29500 --rdzv-id=mine --nproc-per-node=2 --max-restarts=0 "
        "-m -- nanigpt train"
    ]


def test_slurm(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # as in an interactive job
    nested = ("train", *flags("config:llama3_70b", "set:seed=2**9"), "--run_dir=runs/70b")
    lines = printed(capsys, "--nodes=4", "--sbatch=--time=8:00:00", "--", *nested)
    assert lines == [
        f"PYTHON={sys.executable} NPROC_PER_NODE=8 MAX_RESTARTS=1 sbatch --nodes=4 "
        f"--gpus-per-node=8 --time=8:00:00 {SCRIPT} {shlex.join(nested)}",
        "# the job then runs: srun --nodes=4 --ntasks-per-node=1 --cpus-per-task=CPUS_PER_NODE "
        f"--kill-on-bad-exit=1 {sys.executable} -m torch.distributed.run --nnodes=4 "
        "--nproc-per-node=8 --max-restarts=1 --rdzv-backend=c10d "
        "--rdzv-endpoint=FIRST_NODE:PORT --rdzv-id=JOB-0 "
        r"--signals-to-handle=SIGTERM\,SIGINT\,SIGHUP\,SIGQUIT\,SIGUSR1 "
        r"-m -- nanigpt train --config=config:llama3_70b --config=set:seed=2\*\*9 --run_dir=runs/70b",
    ]


@pytest.mark.parametrize("option", ["--gpus=2", "--gres=gpu:2", "-G2"])
def test_the_users_gpus_are_not_asked_for_twice(option, capsys):
    [line, _] = printed(capsys, "--nproc_per_node=2", f"--sbatch={option}")
    assert f"sbatch --nodes=1 {option} {SCRIPT} train" in line


def test_torchx(capsys):
    options = ("--torchx=-cfg=queue=q", "--component=--image=nanigpt:1")
    where = ("--scheduler=kubernetes", "--nodes=2", "--nproc_per_node=2", *options)
    assert printed(capsys, *where, "--", *flags("set:seed=1")) == [
        f"{sys.executable} -m torchx.cli.main run --scheduler=kubernetes --workspace= "
        f"-cfg=queue=q {COMPONENT}:run --nodes=2 --nproc_per_node=2 --max_restarts=1 "
        "--image=nanigpt:1 -- train --config=set:seed=1"
    ]


def test_without_torchx(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["launch", "--on=torchx", "--nproc_per_node=1"]) == 2
    assert "pip install 'nanigpt[cluster]'" in capsys.readouterr().err


def test_without_slurm(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["launch", "--on=slurm", "--nproc_per_node=1"]) == 2
    assert "no sbatch on this machine" in capsys.readouterr().err


def test_two_processes_here(short, tmp_path):
    # --run, which torchrun by itself may take for a flag of its own
    nested = ("train", *short, f"--run_dir={tmp_path / 'run'}")
    out = succeed(nanigpt("launch", "--nproc_per_node=2", "--", *nested))
    assert "parameters on 2 x cpu" in out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]


def test_a_failure_is_passed_on(tmp_path):
    broken = flags(*TINY, f"set:data.corpus.path={tmp_path / 'nothing.txt'}")
    done = nanigpt("launch", "--", "train", *broken, f"--run_dir={tmp_path / 'run'}")
    assert done.returncode == 1  # as torchrun says it
    assert "nothing.txt" in done.stderr


def test_ended_here_nothing_is_left(long, tmp_path):
    path = tmp_path / "run"
    process = start(
        "-m", "nanigpt", "launch", "--nproc_per_node=2", "--", "train", *long, f"--run_dir={path}"
    )
    wait_until(lambda: has_checkpoint(path), process)
    assert len(processes_of(path)) == 3  # torchrun and two ranks
    process.terminate()
    assert finish(process, 60).returncode != 0
    assert processes_of(path) == []


class Slurm:
    """`sbatch`, `srun` and `scontrol` that run a job here, on "nodes" that are all this machine.

    sbatch becomes the job's script, so that a signal to it is one to the script.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.submitted, self.requeued = folder / "submitted", folder / "requeued"
        self.job = free_port() - 10000  # of which the script makes that port
        self._write(
            "sbatch",
            "#!/bin/bash",
            f'echo "$*" >>{self.submitted}',
            "while [[ $1 == --* ]]; do",
            "    [[ $1 == --nodes=* ]] && export SLURM_NNODES=${1#*=}",
            "    shift",
            "done",
            f"export SLURM_JOB_ID={self.job} SLURM_JOB_NODELIST=local SLURM_CPUS_ON_NODE=1",
            'exec bash "$@"',
        )
        self._write(
            "scontrol",
            "#!/bin/bash",
            "[ $1 = show ] && printf 'localhost\\nlocalhost\\n'",
            f'[ $1 = requeue ] && echo "$2" >>{self.requeued}',
        )
        self._write(
            "srun",
            f"#!{sys.executable}",
            "import signal, subprocess, sys",
            "arguments = sys.argv[1:]",
            "start = next(i for i, a in enumerate(arguments) if not a.startswith('--'))",
            "nodes = int(arguments[0].removeprefix('--nodes='))",
            "tasks = [subprocess.Popen(arguments[start:]) for _ in range(nodes)]",
            "signal.signal(signal.SIGUSR1, lambda *_: [t.send_signal(10) for t in tasks])",
            "sys.exit(max(abs(task.wait()) for task in tasks))",
        )

    def _write(self, name: str, *lines: str) -> None:
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def launch(self, *nested: str) -> subprocess.Popen:
        """Two nodes of one process each."""
        where = ("--nodes=2", "--nproc_per_node=1", "--max_restarts=0")
        command = ["-m", "nanigpt", "launch", *where, "--", *nested]
        return start(*command, cwd=self.folder)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Slurm(tmp_path)


def test_a_job_of_two_nodes(slurm, short):
    nested = ("train", *short, "--run_dir=run")
    process = slurm.launch(*nested)
    wait_until((slurm.folder / "run" / "launches.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)  # Slurm gives it to the ranks itself: here they go on
    out = succeed(finish(process, 120))
    assert "parameters on 2 x cpu" in out
    assert len(metrics(slurm.folder / "run")) == 2
    assert slurm.submitted.read_text() == (
        f"--nodes=2 --gpus-per-node=1 {SCRIPT} {' '.join(nested)}\n"
    )
    assert not slurm.requeued.exists()


def test_out_of_time_a_job_is_requeued_and_goes_on(slurm, long):
    path = slurm.folder / "run"
    nested = ("train", *long, f"--run_dir={path}")
    process = slurm.launch(*nested)
    wait_until(lambda: has_checkpoint(path), process)
    process.send_signal(signal.SIGUSR1)
    done = finish(process, 60)
    assert done.returncode != 0
    assert processes_of(path) == []
    assert slurm.requeued.read_text() == f"{slurm.job}\n"
    assert "out of time, back into the queue" in done.stdout
    out = succeed(finish(slurm.launch(*nested), 120))
    assert "resuming after step" in out
    assert [row["step"] for row in metrics(path)] == list(range(1, STEPS + 1))
    assert slurm.requeued.read_text() == f"{slurm.job}\n"  # not again: it has ended


def test_a_job_that_fails_by_itself_is_not_requeued(slurm):
    broken = flags(*TINY, "set:data.corpus.path=nothing.txt")
    done = finish(slurm.launch("train", *broken, "--run_dir=run"), 120)
    assert done.returncode == 1
    assert "nothing.txt" in done.stderr
    assert not slurm.requeued.exists()


def test_a_mistake_is_not_submitted(slurm):
    done = finish(slurm.launch("train", *flags("set:optimizer.lrr=1")), 60)
    assert done.returncode == 2
    assert "did you mean 'lr'?" in done.stderr
    assert not slurm.submitted.exists()


@pytest.mark.slow
def test_torchx_runs_two_nodes_here(short, tmp_path):
    nested = ("train", *short, f"--run_dir={tmp_path / 'run'}")
    where = ("--scheduler=local_cwd", "--nodes=2", "--nproc_per_node=1")
    options = ("--component=--gpus=0", f"--component=--port={free_port()}")
    done = nanigpt("launch", *where, *options, "--", *nested)
    succeed(done)
    assert "parameters on 2 x cpu" in done.stderr
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    "scheduler, options, first_node",
    [
        ("slurm", (), "${SLURM_JOB_NODELIST_HET_GROUP_0:-localhost}:29500"),
        ("kubernetes", ("--torchx=-cfg=queue=q",), "${VC_RANKS_0_HOSTS:-localhost}:29500"),
    ],
)
def test_what_torchx_submits(scheduler, options, first_node):
    where = (f"--scheduler={scheduler}", "--nodes=2", "--nproc_per_node=2", *options)
    nested = ("train", *flags("set:task.sampler.prompt='$HOME'"))
    out = succeed(nanigpt("launch", *where, "--torchx=--dryrun", "--", *nested))
    request = " ".join(out[out.index("=== SCHEDULER REQUEST ===") :].split())
    assert f'--rdzv-endpoint="{first_node}" ' in request
    assert request.count("--nproc-per-node=2 --max-restarts=1 -m -- nanigpt train ") == 2
    assert "$HOME" in request and "$$" not in request


def free_port() -> int:
    """A free port between 10000 and 29999."""
    for port in range(10000 + os.getpid() % 20000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) != 0:
                return port
    raise AssertionError("no free port")


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for something that a process does, while it lives."""
    deadline = time.monotonic() + 100
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            done = finish(process, 0)
            raise AssertionError(f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        time.sleep(0.02)


def has_checkpoint(path: Path) -> bool:
    return any((path / "checkpoints").glob("step_*"))


def processes_of(path: Path) -> list[str]:
    """Command lines of processes that name a path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended
            continue
        if str(path) in line:
            found.append(line)
    return found

"""`nanigpt sweep`: trials of real training, and of a stand-in where only the sweep is looked at."""

import csv
import functools
import json
import os
import signal
import subprocess
import time

import pytest

from nanigpt.cli.sweeping import pool
from nanigpt.cli.sweeping.objective import Objective
from nanigpt.cli.sweeping.tpe import Observation, Search
from nanigpt.config.compose.space import Axis, Integers, LogUniform
from nanigpt.config.record.run_config import load_run
from tests.cli.conftest import STAND_IN
from tests.support import TINY, finish, flags, metrics, start, succeed, tiny

_RATES = "--sweep=tag:LearningRate="


def table(path):
    """results.csv by learning rate."""
    with open(path / "results.csv") as stream:
        return {float(row["LearningRate"]): row for row in csv.DictReader(stream)}


def launches(path):
    return len((path / "launches.jsonl").read_text().splitlines())


def trial_files(path, name):
    return sorted(path.glob(f"*/{name}"))


def test_trials_are_runs_and_survive_a_kill(tmp_path):
    path = tmp_path / "sweep"
    directives = flags(*TINY, "fiddler:steps(120)")
    command = ("-m", "nanigpt", "sweep", *directives, f"--dir={path}", "--parallel=2")
    command = (*command, _RATES + "[1e-3,3e-3]")
    process = start(*command)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(path.glob("*/checkpoints/step_*"))) >= 4:
            break
        time.sleep(0.02)
    process.kill()  # it alone, not its group
    process.communicate()
    assert trial_files(path, "result.json") == []
    out = succeed(finish(start(*command), 100))
    assert "2 trials, 0 of them ended, 2 to run" in out
    assert out.count("resumes ") == 2
    for log in trial_files(path, "log.txt"):
        assert "resuming after step" in log.read_text()
        assert "trains there now" not in log.read_text()
    rows = table(path)
    assert {row["status"] for row in rows.values()} == {"done"}
    for rate, row in rows.items():
        assert load_run(row["run"]) == tiny("fiddler:steps(120)", f"tag:LearningRate={rate}")
        assert [r["step"] for r in metrics(row["run"])] == list(range(1, 121))
        assert float(row["val_loss"]) == metrics(row["run"])[-1]["val_loss"]
    assert out.index("3e-3    ") < out.index("1e-3    ")  # the better one first
    assert "best: --config=tag:LearningRate=3e-3" in out
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_no_trial_runs_twice_and_new_values_are_added(sweep):
    status, out, _ = sweep(_RATES + "[1e-4,1e-3]")
    assert status == 0
    # Another way to write the same value, and another axis at the base's value: the same trials.
    status, out, _ = sweep(_RATES + "[0.001,1e-2]", "--sweep=set:optimizer.betas[1]=[0.95]")
    assert (status, out.count("starts ")) == (0, 1)
    assert [launches(p.parent) for p in trial_files(sweep.path, "launches.jsonl")] == [1, 1, 1]
    assert set(table(sweep.path)) == {1e-4, 1e-3, 1e-2}
    trials = json.loads((sweep.path / "sweep.json").read_text())["trials"]
    assert [t["edits"][0] for t in trials] == [
        "tag:LearningRate=1e-4",
        "tag:LearningRate=1e-3",
        "tag:LearningRate=1e-2",
    ]


def test_a_failing_and_a_diverging_trial_stop_no_other(sweep):
    status, out, _ = sweep(_RATES + "[2,0.9,1e-3]")
    assert status == 1
    rows = table(sweep.path)
    assert {rate: row["status"] for rate, row in rows.items()} == {
        1e-3: "done",
        0.9: "diverged",
        2.0: "failed",
    }
    assert list(rows) == [1e-3, 0.9, 2.0]
    assert "a rate of 2.0 is too much" in out.splitlines()[-2]
    failed = next(p.parent for p in trial_files(sweep.path, "log.txt") if "=2-" in str(p))
    assert sweep(_RATES + "[2,1e-3]")[0] == 1
    assert launches(failed) == 1
    assert sweep(_RATES + "[2,1e-3]", "--retry")[0] == 1
    assert launches(failed) == 2
    assert sweep(_RATES + "[1e-3]")[0] == 0  # of what was asked for, nothing failed


def test_random_draws_grow(sweep):
    ranges = [_RATES + "loguniform(1e-5,1e-2)", "--method=random"]
    sweep(*ranges, "--trials=2", "--parallel=2")
    first = set(table(sweep.path))
    sweep(*ranges, "--trials=3")
    assert len(first) == 2
    assert len(set(table(sweep.path))) == 3
    assert first < set(table(sweep.path))


def test_tpe_finds_the_minimum_and_goes_on(sweep):
    search = [_RATES + "loguniform(1e-6,1)", "--method=tpe", "--seed=1"]
    sweep(*search, "--trials=4")
    before = table(sweep.path)
    assert len(before) == 4
    next(iter(trial_files(sweep.path, "result.json"))).unlink()  # as after a kill
    status, out, _ = sweep(*search, "--trials=12")
    rows = table(sweep.path)
    assert (status, len(rows)) == (0, 12)
    assert before.keys() < rows.keys()
    assert out.count("starts ") == 8
    assert out.count("resumes ") == 1
    late = [t["edits"][0] for t in json.loads((sweep.path / "sweep.json").read_text())["trials"]]
    assert any(1e-4 < float(edit.partition("=")[2]) < 1e-2 for edit in late[6:])
    assert 2e-4 < next(iter(rows)) < 5e-3


def test_a_hopeless_trial_is_pruned(sweep):
    sweep(_RATES + "[1e-3,2e-3,3e-3]")  # what a search knows beforehand
    (sweep.path / "slow").touch()
    # The whole range is worse than what is known.
    search = [_RATES + "loguniform(1e-7,1e-2)", "--method=tpe", "--trials=1"]
    status, out, _ = sweep(*search, "--seed=4")
    assert (status, out.count("pruned ")) == (0, 2)  # told, and in the table
    row = next(row for row in table(sweep.path).values() if row["status"] == "pruned")
    assert 5 <= int(row["step"]) < 20  # not before a quarter of the steps
    assert "done" in sweep(*search, "--prune_after=1", "--trials=2", "--seed=4")[1]


def search(axes, goal="min", seed=0):
    axes = [Axis((key,), space) for key, space in axes.items()]
    objective = Objective("val_loss", goal)
    return Search(axes, objective=objective, seed=seed, startup=3, prune_after=0.25)


def test_suggestions_are_a_function_of_what_is_known():
    axes = {
        "tag:LearningRate": LogUniform(1e-5, 1e-1),
        "set:a": ("x", "y"),
        "set:n": Integers(1, 8),
    }
    seen = []
    for i in range(30):
        point = search(axes).suggest(seen, attempt=0)
        assert point == search(axes).suggest(seen, attempt=0)
        values = {key: str(value) for key, value in point.items()}
        assert search(axes).covers(values)
        loss = abs(float(values["tag:LearningRate"]) - 1e-3) + (values["set:a"] == "x")
        state = "fail" if i % 7 == 6 else "complete"
        seen.append(Observation(values, {20: loss if i != 3 else float("nan")}, state))
    assert search(axes).suggest(seen, attempt=1) != search(axes).suggest(seen, attempt=0)
    assert search(axes, seed=1).suggest([], attempt=0) != search(axes).suggest([], attempt=0)
    late = [o.values["set:a"] for o in seen[15:]]
    assert late.count("y") > 10


def test_what_an_axis_no_longer_covers_is_left_out():
    axes = {"tag:LearningRate": LogUniform(1e-4, 1e-2)}
    covers = search(axes).covers
    assert covers({"tag:LearningRate": "1e-4"})
    assert covers({"tag:LearningRate": "2**-8"})
    assert not covers({"tag:LearningRate": "1e-5"})
    assert not covers({"tag:LearningRate": "fast"})
    assert not covers({"tag:LearningRate": "1e-3", "set:a": "x"})
    assert not covers({})


@pytest.mark.parametrize("goal, hopeless", [("min", 9.0), ("max", 1.0)])
def test_pruning_is_by_the_median_of_complete_trials(goal, hopeless):
    axes = {"tag:LearningRate": LogUniform(1e-5, 1e-1)}
    values = {"tag:LearningRate": "1e-3"}
    done = [Observation(values, {5: v, 10: v}, "complete") for v in (4.0, 5.0, 6.0)]
    is_hopeless = functools.partial(search(axes, goal=goal).is_hopeless, steps=20)
    assert is_hopeless(done, Observation(values, {5: hopeless}))
    assert not is_hopeless(done, Observation(values, {5: 5.0}))
    assert not is_hopeless(done[:2], Observation(values, {5: hopeless}))  # too few
    assert not is_hopeless(done, Observation(values, {4: hopeless}))  # too early
    assert not is_hopeless(done, Observation(values, {5: hopeless}), steps=40)  # of a longer run
    assert is_hopeless([], Observation(values, {1: 5.0, 2: float("nan")}))


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopping_ends_the_trials(tmp_path, number, status):
    path = tmp_path / "sweep"
    path.mkdir()
    (path / "slow").touch()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    arguments = ["sweep", *flags(*TINY), f"--dir={path}", _RATES + "[1e-3,1e-2]", "--parallel=2"]
    # A test run that was started in the background hands down that SIGINT is ignored.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from nanigpt.cli.main import main
from nanigpt.cli.sweeping import pool
pool.PROGRAM = [{str(tmp_path / "stand_in.py")!r}]
sys.exit(main({arguments!r}))
"""
    process = start("-c", code)
    deadline = time.monotonic() + 60
    while len(trial_files(path, "metrics.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    done = finish(process, 30)
    assert done.returncode == status, done.stderr
    assert "the same command continues from here" in done.stdout
    assert trial_files(path, "result.json") == []
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(path) not in running


def test_a_second_sweep_in_the_same_place_is_refused(sweep):
    import fcntl
    import socket

    sweep(_RATES + "[1e-3]")
    with open(sweep.path / ".lock", "r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, _, err = sweep(_RATES + "[1e-3]")
    assert status == 2
    assert f"is run by process {os.getpid()} on {socket.gethostname()}" in err


def test_a_slurm_array(sweep, tmp_path, monkeypatch):
    sweep(_RATES + "[1e-2]")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 7 of $1\n")
    (bin_ / "sbatch").chmod(0o755)
    rates = _RATES + "[1e-2,1e-3,1e-4]"
    array = [rates, "--slurm", "--sbatch=--gpus=1"]
    status, out, err = sweep(*array, "--submit")
    assert status == 2
    assert "no sbatch on this machine" in err
    monkeypatch.setenv("PATH", str(bin_), prepend=os.pathsep)
    status, out, _ = sweep(*array, "--submit")
    script = sweep.path / "array.sbatch"
    assert f"Submitted batch job 7 of {script}" in out
    options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --array=1,2" in options  # 0 is done
    assert "#SBATCH --gpus=1" in options
    assert "#SBATCH --requeue" in options
    done = subprocess.run(
        ["bash", str(script)],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sweep(*array, "--parallel=3")[0] == 0
    assert "#SBATCH --array=1%3\n" in script.read_text()
    assert sweep("--report")[0] == 0
    statuses = {rate: row["status"] for rate, row in table(sweep.path).items()}
    assert statuses == {1e-2: "done", 1e-3: "waiting", 1e-4: "done"}
    assert sweep("--only=3")[2] == f"nanigpt: --only=3: {sweep.path} has trials 0 to 2\n"


@pytest.mark.parametrize(
    "visible, n, nproc, expected",
    [
        (None, 4, 1, ["0", "1"]),
        (None, 4, 2, ["0,1", "2,3"]),
        ("4,6,7", 3, 1, ["4", "6"]),
        (None, 1, 1, ["0", "0"]),
        (None, 0, 1, ["", ""]),
    ],
)
def test_trials_divide_the_gpus(tmp_path, monkeypatch, visible, n, nproc, expected):
    import torch

    program = tmp_path / "print_devices.py"
    program.write_text(
        "import os\n"
        "if os.environ.get('RANK', '0') == '0':\n"
        "    print(os.environ.get('CUDA_VISIBLE_DEVICES', ''))\n"
    )
    monkeypatch.setattr(pool, "PROGRAM", [str(program)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with open(tmp_path / "lock", "w") as held:
        trials = pool.Pool(size=2, nproc=nproc, holding=held)
        for name in "ab":
            trials.start(name, [], tmp_path / name, tmp_path / name / "log.txt")
        assert not trials.has_room
        deadline = time.monotonic() + 60
        while len(trials) and time.monotonic() < deadline:
            list(trials.ended())
            time.sleep(0.05)
    assert [(tmp_path / name / "log.txt").read_text().strip() for name in "ab"] == expected


def test_another_objective(sweep):
    sweep(_RATES + "[1e-4,1e-3]")
    status, _, _ = sweep("--report", "--objective=loss", "--goal=max")
    assert (status, list(table(sweep.path))) == (0, [1e-4, 1e-3])
    status, _, err = sweep("--report", "--objective=val_los")
    assert status == 2
    assert "--objective=val_los: not among the metrics; did you mean 'val_loss'" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--sweep is missing"),
        (["--report"], "no sweep there"),
        (["--only=0"], "no sweep there"),
        ([_RATES + "uniform(1,2)"], "a grid needs a list [a,b,c]; a range goes with --method=random"),
        ([_RATES + "[1]", "--trials=3"], "--trials goes with --method=random or tpe"),
        ([_RATES + "[1]", "--method=tpe"], "--method=tpe needs --trials=N"),
        ([_RATES + "[1]", "--method=tpe", "--trials=3", "--slurm"], "a TPE search learns from trial to trial"),
        ([_RATES + "[1]", "--submit"], "--submit goes with --slurm"),
        ([_RATES + "[1]", _RATES + "[2]"], "tag:LearningRate is varied twice"),
        ([_RATES + "[fast,1]", "--sweep=set:steps=[0,40]"], "expected float, not str"),
        ([_RATES + "[fast,1]", "--sweep=set:steps=[0,40]"], "steps=0"),
        (["--sweep=tag:LearningRat=loguniform(1,2)", "--method=tpe", "--trials=3"], "did you mean 'LearningRate'"),
    ],
)  # fmt: skip
def test_a_mistake_writes_nothing(sweep, arguments, message):
    status, _, err = sweep(*arguments)
    assert status == 2
    assert message in err
    assert not sweep.path.exists()


def test_another_base_is_refused(sweep):
    sweep(_RATES + "[1e-3]")
    status, _, err = sweep("--config=set:steps=30", _RATES + "[1e-3]")
    assert status == 2
    assert "holds a sweep of another base: steps: 20 -> 30" in err


def test_only_a_search_and_the_picture_need_packages(sweep, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    missing = ("matplotlib", "optuna")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a)
    )
    search = ["--method=tpe", "--trials=2"]
    status, _, err = sweep(_RATES + "[1e-3]", *search)
    assert status == 2
    assert "--method=tpe needs optuna; install it with: pip install 'nanigpt[sweep]'" in err
    status, out, _ = sweep(_RATES + "[1e-3]")
    assert (status, set(table(sweep.path))) == (0, {1e-3})
    told = "results.csv; for a picture: pip install 'nanigpt[sweep]'"
    assert out.splitlines()[-1] == f"{sweep.path}/{told}"
    assert not (sweep.path / "sweep.png").exists()


def test_importing_the_command_is_light():
    code = """
import sys
from nanigpt.cli.main import main
assert main(["sweep", "--sweep=x"]) == 2
print([name for name in ("optuna", "matplotlib", "rich") if name in sys.modules])
"""
    assert succeed(finish(start("-c", code), 60)).splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["val_los", "Val_Loss", "val-loss", "Loss"])
def test_a_name_that_no_row_can_have_is_refused_before_any_trial(sweep, name):
    status, _, err = sweep(_RATES + "[1e-4,1e-3]", f"--objective={name}")
    assert status == 2 and f"--objective={name}: not among the metrics; did you mean" in err
    assert not sweep.path.exists()


def test_any_number_of_a_row_may_be_the_objective(sweep):
    """A name that no row of the first trial has is refused, with similar names."""
    status, out, _ = sweep(_RATES + "[1e-4,1e-3]", "--objective=loss")
    assert status == 0 and "loss" in out
    status, _, err = sweep(_RATES + "[1e-4,1e-3,1e-2]", "--objective=los")
    assert status == 2
    assert "--objective=los: not among the metrics; did you mean 'loss'" in err

"""`nanigpt sweep` over recipes, arguments and fiddlers, by objectives over windows, with costs."""

import csv
import json
import math
import re
import shlex
import subprocess

import pytest

from nanigpt.cli.main import main
from nanigpt.cli.sweeping.objective import Objective, recorded, require_recorded
from nanigpt.cli.sweeping.tpe import Observation, Search
from nanigpt.cli.trainer import checked_trainer
from nanigpt.config import registry
from nanigpt.config.compose.axes import parse_axes
from nanigpt.errors import UsageError
from nanigpt.experiments.llama3 import llama3_model
from nanigpt.experiments.pretraining import debugging
from nanigpt.fiddlers.scale import steps
from nanigpt.training.evaluation import Evaluation
from tests.support import QUICK, tiny, train

_RATES = "--sweep=tag:LearningRate="
_SIZES = "--sweep=config:sized(dim=[32,64])"


def sized(dim: int = 64, n_layers: int = 2):
    """A recipe with arguments."""
    sizes = {"n_heads": 4, "n_kv_heads": 4, "hidden_dim": 2 * dim, "vocab_size": 512}
    model = llama3_model(dim=dim, n_layers=n_layers, sequence_length=128, **sizes)
    cfg = debugging(model, steps=700)
    steps(cfg, 20)
    cfg.evaluations["val"].interval = 5
    return cfg


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    find = registry.find_recipe
    monkeypatch.setattr(registry, "find_recipe", lambda n: sized if n == "sized" else find(n))


def rows(sweep):
    with open(sweep.path / "results.csv") as stream:
        return list(csv.DictReader(stream))


def trials(sweep):
    return json.loads((sweep.path / "sweep.json").read_text())["trials"]


def commands(sweep):
    """The command line of every launch."""
    found = []
    for path in sorted(sweep.path.glob("*/launches.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def test_a_study_of_sizes_and_rates_is_one_command(sweep):
    status, out, err = sweep(_SIZES, _RATES + "[1e-3,1e-2]", base=["set:seed=7"])
    assert status == 0, err
    found = rows(sweep)
    assert [(row["sized.dim"], row["LearningRate"]) for row in found] == [
        ("32", "1e-3"),
        ("64", "1e-3"),
        ("32", "1e-2"),
        ("64", "1e-2"),
    ]
    cost = {row["sized.dim"]: float(row["flops"]) for row in found}
    assert cost["64"] > 2 * cost["32"]
    assert {row["tokens"] for row in found} == {"10240"}
    assert {float(row["seconds"]) for row in found} == {1.0}
    assert re.search(r"step +seconds +tokens +FLOPs +status", out)
    assert "best: '--config=config:sized(dim=32)' --config=tag:LearningRate=1e-3" in out
    assert trials(sweep)[0]["name"].startswith("sized.dim=32,LearningRate=1e-3-")
    given = [c for c in commands(sweep) if "--config=config:sized(dim=64)" in c]
    assert given[0][:4] == [
        "train",
        "--config=config:sized(dim=64)",
        "--config=set:seed=7",
        "--config=tag:LearningRate=1e-2",
    ]
    # More values are more trials, and no trial runs twice.
    status, out, _ = sweep(_SIZES, _RATES + "[1e-3,1e-2,1e-4]", base=["set:seed=7"])
    assert (status, out.count("starts "), len(commands(sweep))) == (0, 2, 6)
    status, _, err = sweep(_SIZES, _RATES + "[1e-3]", base=["set:seed=8"])
    assert status == 2
    assert "holds a sweep of another base: set:seed=7 -> set:seed=8" in err


def test_recipes_and_fiddlers_vary(sweep):
    recipes, fiddlers = "config:[llama3_debug,qwen3_debug]", "fiddler:[optimizer_state(8bit),none]"
    arguments = [f"--sweep={recipes}", f"--sweep={fiddlers}"]
    only = "--sweep=when(config:qwen3_debug, set:steps=[20,30])"
    status, _, err = sweep(*arguments, only, base=["fiddler:debug_scale"])
    # The stand-in ends after 20 steps.
    assert status == 1, err
    found = {(r["config"], r["fiddler"], r["steps"]): r["status"] for r in rows(sweep)}
    assert found == {
        ("llama3_debug", "optimizer_state(8bit)", ""): "done",
        ("llama3_debug", "none", ""): "done",
        ("qwen3_debug", "optimizer_state(8bit)", "20"): "done",
        ("qwen3_debug", "optimizer_state(8bit)", "30"): "failed",
        ("qwen3_debug", "none", "20"): "done",
        ("qwen3_debug", "none", "30"): "failed",
    }
    assert [trial["edits"] for trial in trials(sweep)][:2] == [
        ["config:llama3_debug", "fiddler:optimizer_state(8bit)"],
        ["config:llama3_debug"],
    ]


def test_values_go_together(sweep):
    zipped = "--sweep=zip(config:sized(dim=[32,64],n_layers=[1,2]), tag:LearningRate=[1e-3,1e-2])"
    assert sweep(zipped, base=[])[0] == 0
    found = [(r["sized.dim"], r["sized.n_layers"], r["LearningRate"]) for r in rows(sweep)]
    assert found == [("32", "1", "1e-3"), ("64", "2", "1e-2")]


def test_the_default_directory_is_named_by_the_recipe(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for axis, name in ((_SIZES, "sized"), ("--sweep=config:[sized,sized(dim=32)]", "recipes")):
        assert main(["sweep", axis, "--slurm"]) == 0
        assert (tmp_path / "sweeps" / name / "sweep.json").exists()


def test_a_base_and_an_axis_of_bases_are_refused(sweep):
    status, _, err = sweep(_SIZES)
    assert status == 2
    assert "--config=config:llama3_debug: --sweep varies the base; keep one of the two" in err
    assert not sweep.path.exists()


def test_a_search_knows_conditional_and_zipped_axes():
    axes = parse_axes(
        [
            "zip(fiddler:[muon,none], set:a=[x,y])",
            "when(fiddler:muon, tag:LearningRate=loguniform(1e-3,1e-1))",
            "when(fiddler:none, set:n=int(1,4))",
        ]
    ).axes
    search = Search(axes, objective=Objective(), seed=0, startup=3, prune_after=1.0)
    seen = []
    for _ in range(24):
        point = search.suggest(seen, attempt=0)
        values = {key: str(value) for key, value in point.items()}
        assert search.covers(values)
        is_muon = values["fiddler:"] == "muon"
        assert values.keys() == {"fiddler:", "set:a", "tag:LearningRate" if is_muon else "set:n"}
        loss = abs(math.log10(point["tag:LearningRate"]) + 2) if is_muon else 3.0
        seen.append(Observation(values, {20: loss}, "complete"))
    assert [o.values["fiddler:"] for o in seen[12:]].count("muon") > 8
    assert not search.covers({"fiddler:": "muon", "set:a": "y", "tag:LearningRate": "1e-2"})
    assert not search.covers({"fiddler:": "muon", "set:a": "x"})
    assert not search.covers({"fiddler:": "muon", "set:a": "x", "set:n": "2"})


@pytest.mark.parametrize(
    "over, goal, value, step",
    [
        ("last", "min", 3.0, 4),
        ("best", "min", 1.0, 2),
        ("best", "max", 5.0, 1),
        ("mean(2)", "min", 2.5, 4),
        ("mean(9)", "min", 2.75, 4),
    ],
)
def test_an_objective_over_a_window(over, goal, value, step):
    curve = {1: 5.0, 2: 1.0, 3: 2.0, 4: 3.0}
    objective = Objective("loss", goal, over)
    assert (objective.value(curve), objective.step(curve)) == (value, step)
    assert objective.value({}) is None


def test_a_report_over_a_window(sweep):
    sweep(_RATES + "[1e-3,1e-2]", "--objective_over=mean(2)")
    assert float(rows(sweep)[0]["mean(2) val_loss"]) == pytest.approx((1 / 19 + 1 / 20) / 2)
    assert sweep("--report", "--objective_over=best", "--goal=max")[0] == 0
    assert [float(row["best val_loss"]) for row in rows(sweep)] == [2.0, 1.0]
    assert [row["step"] for row in rows(sweep)] == ["1", "1"]
    assert sweep("--report")[0] == 0  # a report changes no setting
    assert "mean(2) val_loss" in rows(sweep)[0]


def test_a_run_that_stopped_because_it_diverged_is_no_failure(sweep):
    status, out, _ = sweep(_RATES + "[0.7,1e-3]")
    assert status == 0
    assert {row["LearningRate"]: row["status"] for row in rows(sweep)} == {
        "1e-3": "done",
        "0.7": "diverged",
    }
    assert "failed" not in out
    assert sweep(_RATES + "[0.7,1e-3]")[1].count("starts ") == 0


@pytest.mark.parametrize(
    "base, arguments, message",
    [
        ((), ("--objective=los",), "--objective=los: not among the metrics; did you mean 'loss'"),
        ((), ("--objective=load_imbalance",), "--objective=load_imbalance: not among the metrics"),
        (("set:evaluations={}",), (), "--objective=val_loss: not among the metrics; did you mean"),
        (("set:trackers=[]",), (), "trackers: a sweep compares runs by metrics.jsonl"),
        ((), ("--objective_over=median",), "--objective_over=median: expected last, best or mean"),
        ((), ("--objective_over=mean(0)",), "--objective_over=mean(0): expected at least 1"),
        ((), ("--slurm", "--sweep=set:optimizer.betas[1]=[0.95,2.0]"), "optimizer.betas=(0.9, 2.0)"),
        ((), ("--sweep=set:parallelizer.mesh.tp=[1,2]",), "parallelizer.mesh"),
        ((), ("--slurm", "--sbatch=--gpus=1\ntouch here"), "expected one line of printable"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_right_writes_no_trial(sweep, base, arguments, message):
    status, _, err = sweep(_RATES + "[1e-3]", *arguments, base=["config:sized", *base])
    assert status == 2
    assert message in err
    assert not list(sweep.path.glob("*/launches.jsonl"))
    assert not (sweep.path / "array.sbatch").exists()


@pytest.mark.parametrize("recipe", ["llama3_debug", "qwen3_moe_debug"])
def test_the_names_that_are_known_beforehand_are_those_of_a_run(recipe, tmp_path):
    cfg = tiny("fiddler:steps(2)", "fiddler:phase_timers", *QUICK, recipe=recipe)
    names, prefixes = recorded(checked_trainer(cfg))
    found = {name for row in train(cfg, tmp_path) for name in row}
    assert {name for name in found if not name.startswith(prefixes)} | {"ms_per_step"} == set(names)


def test_evaluations_of_ones_own_may_have_any_numbers():
    class Own(Evaluation):
        def run(self, parallel, task, data, /):
            return {"anything": 1.0}

    trainer = checked_trainer(tiny())
    trainer.evaluations = {"own": Own()}
    require_recorded(Objective("own_anything"), trainer)
    with pytest.raises(UsageError, match="not among the metrics"):
        require_recorded(Objective("ownanything"), trainer)


def test_a_search_that_can_prune_nothing_says_so(sweep):
    arguments = [_RATES + "loguniform(1e-4,1e-2)", "--method=tpe", "--trials=2"]
    base = ["config:sized", "set:evaluations[val].interval=1000"]
    _, out, _ = sweep(*arguments, base=base)
    told, advice = out.splitlines()[:2]
    assert told == (
        "--method=tpe will prune no trial: trials are compared between steps 5 and 20, and "
        "val_loss is recorded first at step 20"
    )
    assert advice == "  try: '--config=set:evaluations[val].interval=2'"
    (flag,) = shlex.split(advice.removeprefix("  try: "))
    other = f"--dir={sweep.path}2"
    _, out, _ = sweep(*arguments, flag, other, base=base)
    assert "will prune no trial" not in out
    _, out, _ = sweep(*arguments, "--prune_after=1", base=base)
    assert "will prune no trial" not in out
    _, out, _ = sweep(*arguments, "--prune_after=0.99", flag, other, base=base)
    assert out.splitlines()[1] == "  try: --prune_after=0.25"


def pasted(command):
    """The words of a printed command, as a shell that runs it sees them."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_printed_commands_can_be_pasted(sweep, tmp_path):
    """No value of theirs is run by a shell."""
    bad = f"it's $(touch {tmp_path}/run) `touch {tmp_path}/run` \"; touch {tmp_path}/run"
    quoted = "'" + bad.replace("'", "\\'") + "'"
    axis = f"--sweep=set:task.sampler.prompt=[{quoted}]"
    where = f"--dir={tmp_path}/a b $(touch {tmp_path}/run)"
    status, out, err = sweep(axis, where, base=["config:sized"])
    assert status == 0, err
    (best,) = [line.removeprefix("best: ") for line in out.splitlines() if line[:5] == "best:"]
    assert pasted(best) == [f"--config=set:task.sampler.prompt={quoted}"]
    _, out, err = sweep(axis, _RATES + "[2e-3]", where, "--slurm", base=["config:sized"])
    script, report = out.splitlines()[-2:]
    folder = where.removeprefix("--dir=")
    assert pasted(script.partition(": ")[2]) == ["sbatch", f"{folder}/array.sbatch"]
    assert pasted(report.partition(": ")[2]) == ["nanigpt", "sweep", where, "--report"]
    text = (tmp_path / folder / "array.sbatch").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1 and where in shlex.split(lines[0])
    assert not (tmp_path / "run").exists()


def test_a_record_without_values_is_still_read(sweep):
    """Sweeps of version 0.1 recorded directives only."""
    sweep(_RATES + "[1e-3,1e-2]")
    path = sweep.path / "sweep.json"
    record = json.loads(path.read_text())
    for trial in record["trials"]:
        del trial["values"], trial["flops"]
    del record["objective_over"]
    path.write_text(json.dumps(record))
    assert sweep("--report")[0] == 0
    assert [row["LearningRate"] for row in rows(sweep)] == ["1e-3", "1e-2"]
    assert sweep(_RATES + "[1e-3,1e-2]")[1].count("starts ") == 0

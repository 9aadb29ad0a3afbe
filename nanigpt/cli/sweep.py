r"""Train a grid, a random sample or a TPE search of configs, and compare them.

nanigpt sweep --config=config:llama3_debug --sweep='tag:LearningRate=[1e-4,3e-4,1e-3]' \
    --sweep='set:optimizer.betas[1]=[0.95,0.99]' --parallel=2
nanigpt sweep --sweep='config:[llama3_debug,qwen3_debug]' --sweep='fiddler:[muon,none]'
nanigpt sweep --sweep='tag:LearningRate=loguniform(1e-5,1e-2)' --method=tpe --trials=20
nanigpt sweep --sweep='tag:LearningRate=[1e-4,3e-4]' --slurm --sbatch=--gpus=1 --submit
nanigpt sweep --dir=sweeps/llama3_debug --report

An axis is a directive of --config with a list or a range in place of a value. 'zip(AXIS, AXIS)'
gives values that go together. 'when(fiddler:muon, AXIS)' gives an axis that only exists in trials
with this directive. Every trial is a run of its own. The same command resumes a sweep that was
stopped or killed. With more values, it runs only the new trials. No trial is ever trained twice.
"""

import importlib.util
import shlex
from pathlib import Path

from absl import flags

from nanigpt.cli.sweeping.directory import FAILED, SweepDirectory, Trial, has_base
from nanigpt.cli.sweeping.flags import define_sweep_flags, read_axes
from nanigpt.cli.sweeping.lock import lock
from nanigpt.cli.sweeping.objective import Objective, pruning_advice
from nanigpt.cli.sweeping.plan import Plan
from nanigpt.cli.sweeping.plot import plot
from nanigpt.cli.sweeping.pool import Pool
from nanigpt.cli.sweeping.report import print_conclusion, print_results, results, write_csv
from nanigpt.cli.sweeping.runner import Runner, to_run
from nanigpt.cli.sweeping.slurm import submit, write_array
from nanigpt.cli.sweeping.tpe import Search
from nanigpt.cli.sweeping.tpe_trials import TpeTrials
from nanigpt.config.compose.axes import Axes
from nanigpt.config.compose.flag import config_flag, define_config_flag, recipe_name
from nanigpt.errors import UsageError


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    define_sweep_flags(values)


def run(values: flags.FlagValues) -> int:
    """Run the command; return 0, or 1 if a trial failed."""
    if values.only is not None:
        return _run_one(_recorded(_directory(values)), values)
    if values.report:
        directory = _recorded(_directory(values))
        directory.settings |= _objective(directory, values)
        return _report(directory, directory.trials)
    axes = read_axes(values)
    base = _base(axes, values)
    path = Path(values.dir or f"sweeps/{_name(axes, base)}")
    plan = _plan(base, axes, values, _objective(SweepDirectory(path), values))
    planned = plan.trials  # finds mistakes before anything is written
    if values.method == "tpe":
        _warn_of_pruning(plan, values.prune_after)
    with lock(path / ".lock", what=f"--dir={path}: a sweep there") as held:
        directory = SweepDirectory(path)
        chosen = {"axes": values.sweep, "method": values.method, "seed": values.seed}
        directory.claim({"base": base, **chosen, **_objective(directory, values)})
        trials = [directory.add(trial) for trial in planned]
        if values.slurm:
            return _write_array(directory, to_run(directory, trials, retry=values.retry), values)
        runner = Runner(
            directory, Pool(size=values.parallel or 1, nproc=values.nproc, holding=held)
        )
        if values.method == "tpe":
            search = TpeTrials(directory, plan, _search(plan, values), retry=values.retry)
            trials = search.trials
            n = max(values.trials, len(trials))
            _announce(directory, n, n - len(search.ended))
            runner.run(search.next, search.is_hopeless)
        else:
            left = to_run(directory, trials, retry=values.retry)
            _announce(directory, len(trials), len(left))
            queue = iter(left)
            runner.run(lambda: next(queue, None))
        return _report(directory, trials)


def _base(axes: Axes, values: flags.FlagValues) -> list[str]:
    """Return the directives of all trials, which have no base if bases are an axis."""
    flag = config_flag(values)
    if axes.base is None:
        return flag.directives
    given = list(flag.all_arguments)
    if has_base(given):
        raise UsageError(f"--config={given[0]}: --sweep varies the base; keep one of the two")
    return given


def _directory(values: flags.FlagValues) -> Path:
    return Path(values.dir or f"sweeps/{recipe_name(config_flag(values).directives)}")


def _name(axes: Axes, base: list[str]) -> str:
    """Return the name of the default directory: that of the recipe, or `recipes` for several."""
    if axes.base is None:
        return recipe_name(base)
    recipe, call, _ = axes.base.pieces[0].partition(":")[2].partition("(")
    return recipe if call else "recipes" if axes.base.kind == "config" else f"{axes.base.kind}s"


def _plan(base: list[str], axes: Axes, values: flags.FlagValues, objective: dict[str, str]) -> Plan:
    return Plan(
        base=base,
        axes=axes,
        method=values.method,
        n=values.trials,
        seed=values.seed,
        ranks=values.nproc,
        objective=Objective(objective["objective"], objective["goal"], objective["objective_over"]),
    )


def _search(plan: Plan, values: flags.FlagValues) -> Search:
    return Search(
        plan.axes.axes,
        objective=plan.objective,
        seed=values.seed,
        # A quarter of the trials, and enough for a median, explore at random.
        startup=max(values.trials // 4, 3),
        prune_after=values.prune_after,
    )


def _warn_of_pruning(plan: Plan, prune_after: float) -> None:
    """Say once, before any trial, that none can be pruned, and the flag that changes it."""
    trainer = plan.example
    if prune_after < 1:
        after = round(prune_after * trainer.steps)
        advice = pruning_advice(plan.objective, trainer, after=after)
        if advice is not None:
            print(advice, flush=True)


def _objective(directory: SweepDirectory, values: flags.FlagValues) -> dict[str, str]:
    """Return the objective, its window and its goal from the flags, or from the last call."""
    default = {"objective": "val_loss", "objective_over": "last", "goal": "min"}
    return {
        name: values[name].value or directory.settings.get(name, text)
        for name, text in default.items()
    }


def _write_array(directory: SweepDirectory, left: list[Trial], values: flags.FlagValues) -> int:
    if not left:
        print(f"{directory.path}: every trial has ended")
        return 0
    script = write_array(
        directory, left, parallel=values.parallel, nproc=values.nproc, options=values.sbatch
    )
    command = shlex.join(["sbatch", str(script)])
    print(submit(script) if values.submit else f"{len(left)} trials: {command}")
    report = ["nanigpt", "sweep", f"--dir={directory.path}", "--report"]
    print(f"then: {shlex.join(report)}")
    return 0


def _run_one(directory: SweepDirectory, values: flags.FlagValues) -> int:
    """Run a single trial, as a task of a Slurm array."""
    if values.only >= len(directory.trials):
        raise UsageError(
            f"--only={values.only}: {directory.path} has trials 0 to {len(directory.trials) - 1}"
        )
    trial = directory.trials[values.only]
    whole, one = directory.path / ".lock", directory.run(trial).path / ".trial_lock"
    with (
        lock(whole, what=f"--dir={directory.path}: a sweep there", shared=True),
        lock(one, what=f"--only={values.only}: this trial") as held,
    ):
        queue = iter(to_run(directory, [trial], retry=values.retry))
        pool = Pool(size=1, nproc=values.nproc, holding=held)
        Runner(directory, pool).run(lambda: next(queue, None))
    return int(directory.status(trial) == FAILED)


def _announce(directory: SweepDirectory, n: int, left: int) -> None:
    print(f"{directory.path}: {n} trials, {n - left} of them ended, {left} to run", flush=True)


def _report(directory: SweepDirectory, trials: list[Trial]) -> int:
    rows = results(directory)
    print_results(directory, rows)
    write_csv(directory, rows)
    print_conclusion(directory, rows)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"{directory.path}/results.csv; for a picture: pip install 'nanigpt[sweep]'")
    else:
        plot(directory, rows)
        print(f"{directory.path}/results.csv, {directory.path}/sweep.png")
    return int(any(directory.status(trial) == FAILED for trial in trials))


def _recorded(path: Path) -> SweepDirectory:
    directory = SweepDirectory(path)
    if not directory.settings:
        raise UsageError(f"--dir={path}: no sweep there")
    return directory

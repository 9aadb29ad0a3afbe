"""Train a grid, a random sample or a TPE search of configs, and compare them.

nanigpt sweep --config=config:llama3_debug --sweep='tag:LearningRate=[1e-4,3e-4,1e-3]' \\
    --sweep='set:optimizer.betas[1]=[0.95,0.99]' --parallel=2
nanigpt sweep --sweep='tag:LearningRate=loguniform(1e-5,1e-2)' --method=tpe --trials=20
nanigpt sweep --sweep='tag:LearningRate=[1e-4,3e-4]' --slurm --sbatch=--gpus=1 --submit
nanigpt sweep --dir=sweeps/llama3_debug --report

Every trial is a run of its own. The same command resumes a sweep that was ended or killed; with
more values it runs the new trials only. What was trained once is never trained again.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from nanigpt.cli.sweeping.directory import FAILED, SweepDirectory, Trial, compose_trial
from nanigpt.cli.sweeping.lock import lock
from nanigpt.cli.sweeping.objective import require_possible
from nanigpt.cli.sweeping.plot import plot
from nanigpt.cli.sweeping.pool import Pool
from nanigpt.cli.sweeping.report import print_conclusion, print_table, results, write_csv
from nanigpt.cli.sweeping.runner import Runner, TpeTrials, to_run
from nanigpt.cli.sweeping.slurm import submit, write_array
from nanigpt.cli.sweeping.tpe import Search
from nanigpt.cli.trainer import build_trainer
from nanigpt.config.flag import compose, define_config_flag, recipe_name
from nanigpt.config.sweep import Space, extremes, parse_axis, points
from nanigpt.errors import UsageError

_SHOWN = 10  # problems


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "tag:TAG=SPACE or set:PATH=SPACE, where SPACE is [a,b,c], uniform(low,high), "
        "loguniform(low,high) or int(low,high); repeat the flag for another axis",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dir", None, "directory of the sweep (default: sweeps/RECIPE)", flag_values=values
    )
    flags.DEFINE_enum(
        "method", "grid", ["grid", "random", "tpe"], "how points are chosen", flag_values=values
    )

    def integer(name: str, default: int | None, text: str, low: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=low, flag_values=values)

    integer("trials", None, "how many, for random and tpe")
    integer("seed", 0, "of random and tpe", low=0)
    integer("parallel", None, "trials at a time (default: 1; of a Slurm array: all)")
    integer("nproc", 1, "processes of each trial")
    integer("only", None, "run the trial of this number in sweep.json, and nothing else", low=0)
    flags.DEFINE_string(
        "objective",
        None,
        "number of metrics.jsonl to compare by (default: val_loss)",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "goal", None, ["min", "max"], "of the objective (default: min)", flag_values=values
    )
    flags.DEFINE_float(
        "prune_after",
        0.25,
        "tpe ends trials that are worse than the median, after this part of their steps; 1: never",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_bool("retry", False, "run failed trials again", flag_values=values)
    flags.DEFINE_bool("report", False, "print the results, and run nothing", flag_values=values)
    flags.DEFINE_bool("slurm", False, "write a Slurm array, and run nothing", flag_values=values)
    flags.DEFINE_bool("submit", False, "give the Slurm array to sbatch", flag_values=values)
    flags.DEFINE_multi_string(
        "sbatch", [], "an option of the Slurm array, such as --gpus=1", flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    """Returns 0, or 1 where a trial failed."""
    base = values["config"].directives
    path = Path(values.dir or f"sweeps/{recipe_name(base)}")
    if values.only is not None:
        return _run_one(_recorded(path), values)
    _require("matplotlib")
    if values.report:
        directory = _recorded(path)
        directory.settings |= _objective(directory, values)
        return _report(directory, directory.trials)
    axes = _axes(values)
    planned = _plan(base, axes, values)  # what is wrong is told before anything is written
    if values.objective is not None:
        edits = planned[0].edits if planned else ()
        require_possible(values.objective, build_trainer(compose([*base, *edits])))
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
            search = _search(directory, axes, values)
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


def _axes(values: flags.FlagValues) -> dict[str, Space]:
    """What the flags ask to vary, once it is clear that they go together."""
    try:
        return _read_axes(values)
    except UsageError as error:
        raise UsageError(f"{error}\n  try: nanigpt sweep --help") from error


def _read_axes(values: flags.FlagValues) -> dict[str, Space]:
    if not values.sweep:
        raise UsageError(
            "--sweep is missing; expected --sweep='tag:LearningRate=[1e-4,3e-4]' or the like"
        )
    if values.method == "grid" and values.trials is not None:
        raise UsageError("--trials goes with --method=random or tpe; a grid has all combinations")
    if values.method != "grid" and values.trials is None:
        raise UsageError(f"--method={values.method} needs --trials=N")
    if values.slurm and values.method == "tpe":
        raise UsageError(
            "--slurm: a TPE search learns from trial to trial, an array's tasks do not; use "
            "--method=random, or run the search itself as one job with --parallel"
        )
    if values.submit and not values.slurm:
        raise UsageError("--submit goes with --slurm")
    if values.sbatch and not values.slurm:
        raise UsageError(f"--sbatch={values.sbatch[0]} goes with --slurm")
    if values.method == "tpe":
        _require("optuna")
    axes: dict[str, Space] = {}
    for text in values.sweep:
        key, space = parse_axis(text)
        if values.method == "grid" and not isinstance(space, tuple):
            raise UsageError(
                f"--sweep={text}: a grid needs a list [a,b,c]; a range goes with --method=random "
                "or --method=tpe, and --trials=N"
            )
        if key in axes:
            raise UsageError(f"--sweep={text}: {key} is varied twice; give it one list")
        axes[key] = space
    return axes


def _plan(base: list[str], axes: dict[str, Space], values: flags.FlagValues) -> list[Trial]:
    """The trials of a grid or of random draws, all of them composed and built; of a TPE search,
    whose trials nobody knows yet, the ends of its ranges are.

    Raises:
        UsageError: with what is wrong with any of them.
    """
    tpe = values.method == "tpe"
    if tpe:
        chosen = extremes(axes)
    else:
        chosen = points(axes, trials=values.trials, seed=values.seed)
    trials: dict[str, Trial] = {}
    problems: dict[str, list[str]] = {}
    for point in chosen:
        try:
            trial = compose_trial(base, point, method=values.method)
            trials.setdefault(trial.fingerprint, trial)
        except UsageError as error:
            where = ", ".join(f"{key}={value}" for key, value in point.items())
            problems.setdefault(str(error), []).append(where)
    if problems:
        raise UsageError("\n".join(["the sweep cannot be run:", *_told(problems)]))
    return [] if tpe else list(trials.values())


def _told(problems: dict[str, list[str]]) -> Iterator[str]:
    """Each problem once, with the first of the points that have it."""
    for problem, where in list(problems.items())[:_SHOWN]:
        more = f" (and {len(where) - 1} more)" if where[1:] else ""
        yield f"  {where[0]}{more}: {problem}"
    if len(problems) > _SHOWN:
        yield f"  and {len(problems) - _SHOWN} more problems"


def _search(
    directory: SweepDirectory, axes: dict[str, Space], values: flags.FlagValues
) -> TpeTrials:
    steps = build_trainer(values.config, directives=values["config"].directives).steps
    search = Search(
        axes,
        goal=directory.settings["goal"],
        seed=values.seed,
        # A quarter of the trials, as many as make a median, tell where to look.
        startup=max(values.trials // 4, 3),
        prune_after=round(values.prune_after * steps) if values.prune_after < 1 else steps + 1,
    )
    return TpeTrials(directory, search, n=values.trials, retry=values.retry)


def _objective(directory: SweepDirectory, values: flags.FlagValues) -> dict[str, str]:
    """What to compare by: as the flags say, else as the last call did."""
    return {
        "objective": values.objective or directory.settings.get("objective", "val_loss"),
        "goal": values.goal or directory.settings.get("goal", "min"),
    }


def _write_array(directory: SweepDirectory, left: list[Trial], values: flags.FlagValues) -> int:
    if not left:
        print(f"{directory.path}: every trial has ended")
        return 0
    script = write_array(
        directory, left, parallel=values.parallel, nproc=values.nproc, options=values.sbatch
    )
    print(submit(script) if values.submit else f"{len(left)} trials: sbatch {script}")
    print(f"then: nanigpt sweep --dir={directory.path} --report")
    return 0


def _run_one(directory: SweepDirectory, values: flags.FlagValues) -> int:
    """A task of a Slurm array."""
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
    print_table(directory, rows)
    write_csv(directory, rows)
    plot(directory, rows)
    print_conclusion(directory, rows)
    print(f"{directory.path}/results.csv, {directory.path}/sweep.png")
    return int(any(directory.status(trial) == FAILED for trial in trials))


def _recorded(path: Path) -> SweepDirectory:
    directory = SweepDirectory(path)
    if not directory.settings:
        raise UsageError(f"--dir={path}: no sweep there")
    return directory


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"a sweep needs {package}; install it with: pip install 'nanigpt[sweep]'")

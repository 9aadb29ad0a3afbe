r"""Train a grid, a random sample or a TPE search of configs, and compare them.

nanigpt sweep --config=config:llama3_debug --sweep='tag:LearningRate=[1e-4,3e-4,1e-3]' \
    --sweep='set:optimizer.betas[1]=[0.95,0.99]' --parallel=2
nanigpt sweep --sweep='tag:LearningRate=loguniform(1e-5,1e-2)' --method=tpe --trials=20
nanigpt sweep --sweep='tag:LearningRate=[1e-4,3e-4]' --slurm --sbatch=--gpus=1 --submit
nanigpt sweep --dir=sweeps/llama3_debug --report

Every trial is a run of its own. The same command resumes a sweep that was stopped or killed. With
more values, it runs only the new trials. No trial is ever trained twice.
"""

import importlib.util
from pathlib import Path

from absl import flags

from nanigpt.cli.sweeping.directory import FAILED, SweepDirectory, Trial, compose_trial
from nanigpt.cli.sweeping.lock import lock
from nanigpt.cli.sweeping.objective import require_possible
from nanigpt.cli.sweeping.plot import plot
from nanigpt.cli.sweeping.pool import Pool
from nanigpt.cli.sweeping.report import print_conclusion, print_results, results, write_csv
from nanigpt.cli.sweeping.runner import Runner, TpeTrials, to_run
from nanigpt.cli.sweeping.slurm import submit, write_array
from nanigpt.cli.sweeping.tpe import Search
from nanigpt.cli.trainer import build_trainer
from nanigpt.config.compose.flag import compose, config_flag, define_config_flag, recipe_name
from nanigpt.config.compose.sweep import Space, extremes, parse_axis, points
from nanigpt.errors import UsageError
from nanigpt.words import listed, shortened

_SHOWN = 10  # problems


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "Vary tag:TAG=SPACE or set:PATH=SPACE, where SPACE is [a,b,c], uniform(low,high), "
        "loguniform(low,high) or int(low,high). Repeat the flag for another axis.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dir",
        None,
        "Keep the sweep in this directory (default: sweeps/RECIPE).",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "method",
        "grid",
        ["grid", "random", "tpe"],
        "Choose the trials by this method.",
        flag_values=values,
    )

    def integer(name: str, default: int | None, text: str, low: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=low, flag_values=values)

    integer("trials", None, "Run this number of trials, with --method=random or tpe.")
    integer("seed", 0, "Seed the random numbers of --method=random or tpe.", low=0)
    integer(
        "parallel",
        None,
        "Run this number of trials at the same time (default: 1, or all in a Slurm array).",
    )
    integer("nproc", 1, "Start this number of processes for each trial.")
    integer("only", None, "Run only the trial with this number in sweep.json.", low=0)
    flags.DEFINE_string(
        "objective",
        None,
        "Compare trials by this number in metrics.jsonl (default: val_loss).",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "goal",
        None,
        ["min", "max"],
        "Search for the smallest or the largest objective (default: min).",
        flag_values=values,
    )
    flags.DEFINE_float(
        "prune_after",
        0.25,
        "With --method=tpe, end trials that are worse than the median after this fraction of their "
        "steps; 1 ends none.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_bool("retry", False, "Run failed trials again.", flag_values=values)
    flags.DEFINE_bool("report", False, "Print the results, and run nothing.", flag_values=values)
    flags.DEFINE_bool("slurm", False, "Write a Slurm array, and run nothing.", flag_values=values)
    flags.DEFINE_bool("submit", False, "Submit the Slurm array with sbatch.", flag_values=values)
    flags.DEFINE_multi_string(
        "sbatch", [], "Give the Slurm array an option, such as --gpus=1.", flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    """Run the command; return 0, or 1 if a trial failed."""
    base = config_flag(values).directives
    path = Path(values.dir or f"sweeps/{recipe_name(base)}")
    if values.only is not None:
        return _run_one(_recorded(path), values)
    _require("matplotlib")
    if values.report:
        directory = _recorded(path)
        directory.settings |= _objective(directory, values)
        return _report(directory, directory.trials)
    axes = _axes(values)
    planned = _plan(base, axes, values)  # finds mistakes before anything is written
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
    """Read the axes, and check that the flags fit together."""
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
            "--slurm: a TPE search learns from trial to trial, but an array's tasks do not; use "
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
    """Return the trials of a grid or of random draws, after building each.

    The trials of a TPE search are not known yet. For it, the ends of its ranges are built.

    Raises:
        UsageError: Some trials cannot be built. The message lists the problems.
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
        told = [f"{listed(where, 1)}: {problem}" for problem, where in problems.items()]
        raise UsageError("\n  ".join(["the sweep cannot be run:", *shortened(told, _SHOWN)]))
    return [] if tpe else list(trials.values())


def _search(
    directory: SweepDirectory, axes: dict[str, Space], values: flags.FlagValues
) -> TpeTrials:
    steps = build_trainer(values.config, directives=config_flag(values).directives).steps
    search = Search(
        axes,
        goal=directory.settings["goal"],
        seed=values.seed,
        # A quarter of the trials, and enough for a median, explore at random.
        startup=max(values.trials // 4, 3),
        prune_after=round(values.prune_after * steps) if values.prune_after < 1 else steps + 1,
    )
    return TpeTrials(directory, search, n=values.trials, retry=values.retry)


def _objective(directory: SweepDirectory, values: flags.FlagValues) -> dict[str, str]:
    """Return the objective and its goal from the flags, or from the last call."""
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

"""The flags of the command `sweep`, and mistakes in them."""

import importlib.util

from absl import flags

from nanigpt.config.compose.axes import Axes, parse_axes
from nanigpt.errors import UsageError


def define_sweep_flags(values: flags.FlagValues) -> None:
    """Define all flags but `--config`."""
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "Vary a directive of --config, with SPACE in place of a value: tag:TAG=SPACE, "
        "set:PATH=SPACE, config:[a,b], config:RECIPE(x=SPACE), fiddler:[a,none] or "
        "fiddler:NAME(SPACE), where SPACE is [a,b,c], uniform(low,high), loguniform(low,high) or "
        "int(low,high). Combine axes as zip(AXIS, AXIS) or when(DIRECTIVE, AXIS). Repeat the flag "
        "for another axis.",
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
    flags.DEFINE_string(
        "objective_over",
        None,
        "Take the last value of the objective, the best one, or the mean(N) of the last N "
        "(default: last).",
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


def read_axes(values: flags.FlagValues) -> Axes:
    """Read the axes, and check that the flags fit together."""
    try:
        return _read_axes(values)
    except UsageError as error:
        raise UsageError(f"{error}\n  try: nanigpt sweep --help") from error


def _read_axes(values: flags.FlagValues) -> Axes:
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
    if values.method == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UsageError("--method=tpe needs optuna; install it with: pip install 'nanigpt[sweep]'")
    axes = parse_axes(values.sweep)
    for axis in axes.axes:
        if values.method == "grid" and not isinstance(axis.space, tuple):
            raise UsageError(
                f"--sweep: {axis}: a grid needs a list [a,b,c]; a range goes with --method=random "
                "or --method=tpe, and --trials=N"
            )
    return axes

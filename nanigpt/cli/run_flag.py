"""The flag `--run_dir`, which several commands share, and the config that it stands for."""

from pathlib import Path

from absl import flags

from nanigpt.config.compose.flag import define_config_flag, is_base
from nanigpt.config.record.run_config import load_run
from nanigpt.errors import UsageError


def define_run_flag(
    values: flags.FlagValues, help_text: str = "Use the run in this directory."
) -> None:
    """Define `--run_dir`, and `--run` as a short form of it.

    Before Python 3.12.7, torchrun takes a program's `--run` for an ambiguous abbreviation of its
    own `--run-path` and stops. It accepts `--run_dir`.
    """
    flags.DEFINE_string("run_dir", None, help_text, flag_values=values)
    flags.register_validator(
        "run_dir",
        lambda path: path != "",
        message="the path is empty; expected a directory such as runs/NAME",
        flag_values=values,
    )
    flags.DEFINE_alias("run", "run_dir", flag_values=values)


def define_config_or_run(values: flags.FlagValues, *, default: str | None = None) -> None:
    """Define `--config`, and `--run_dir` for the config that a run recorded, which edits may edit.

    Args:
        values: The flags of the command.
        default: The base if neither flag gives one.
    """

    def base(given: list[str]) -> str | None:
        if values.run_dir is None:
            return default
        if given and is_base(given[0]):
            raise UsageError(
                f"--config={given[0]}: --run_dir={values.run_dir} has a config of its own; leave "
                "one of the two out"
            )
        return recorded_base(values.run_dir)

    define_run_flag(values, "Start from the config that the run in this directory recorded.")
    define_config_flag(values, default_directive=base)


def recorded_base(run: str) -> str:
    """Return the directive that starts from the config of `--run_dir`.

    Raises:
        UsageError: There is no run. The message names runs beside it.
    """
    if not has_config(run):
        try:
            load_run(run)
        except UsageError as error:
            raise error.within("--run_dir") from error
    return f"run:{run}"


def has_config(run: str) -> bool:
    """Return whether a directory has the config of a run."""
    return (Path(run) / "config.json").is_file()

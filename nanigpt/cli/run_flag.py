"""The flag `--run`, which several commands share."""

from absl import flags


def define_run_flag(
    values: flags.FlagValues, help_text: str = "Use the run in this directory."
) -> None:
    """Define `--run`, and `--run_dir` as another name for it.

    Before Python 3.12.7, torchrun takes a program's `--run` for an ambiguous abbreviation of its
    own `--run-path` and stops. It accepts `--run_dir`.
    """
    flags.DEFINE_string("run", None, help_text, flag_values=values)
    flags.register_validator(
        "run",
        lambda path: path != "",
        message="the path is empty; expected a directory such as runs/NAME",
        flag_values=values,
    )
    flags.DEFINE_alias("run_dir", "run", flag_values=values)

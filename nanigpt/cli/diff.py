"""Print the differences between two configs.

Each side is a run directory, a config file, or directives joined by spaces, where a value with a
space is quoted as in a shell.

  nanigpt diff runs/llama3_debug 'config:llama3_debug tag:LearningRate=1e-4'
  nanigpt diff config:llama3_1b config:llama3_3b --format=html > diff.html
  nanigpt diff config:llama3_1b config:llama3_3b --format=python > edit.py
"""

import shlex
from pathlib import Path
from typing import Any

from absl import flags

from nanigpt.config.compose.flag import compose
from nanigpt.config.view.diff import FORMATS, render
from nanigpt.errors import UsageError

TAKES_ARGUMENTS = True

_TRY = "\n  try: nanigpt diff config:llama3_1b 'config:llama3_1b tag:LearningRate=1e-4'"


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("format", "text", FORMATS, "Print this format.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    if len(arguments) != 2:
        raise UsageError(f"diff: expected two configs, not {len(arguments)}{_TRY}")
    old, new = map(_config, arguments)
    print(render(old, new, format=values.format, names=(arguments[0], arguments[1])))
    return 0


def _config(side: str) -> Any:
    if not side.strip():
        raise UsageError(f"diff: a config is empty; expected a run, a file or directives{_TRY}")
    if Path(side).is_dir():
        return compose([f"run:{side}"])
    if Path(side).is_file():
        return compose([f"config_file:{side}"])
    try:
        return compose(shlex.split(side))
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"diff: {side!r}: {error}; quote values as in a shell{_TRY}") from error

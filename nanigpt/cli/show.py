"""Print a config.

nanigpt show --config=config:llama3_8b
nanigpt show --config=run:runs/llama3_debug --format=flat
"""

import sys

from absl import flags

from nanigpt.config.flag import define_config_flag
from nanigpt.config.show import FORMATS, render


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_enum("format", "tree", FORMATS, "how to print it", flag_values=values)


def run(values: flags.FlagValues) -> int:
    print(render(values.config, format=values.format, color=sys.stdout.isatty()))
    return 0

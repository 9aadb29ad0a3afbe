"""Print a config: as a tree, a list, Python, JSON, a graph, or a page.

nanigpt show --config=config:llama3_8b --config=tag:LearningRate=1e-4 --why
nanigpt show --config=run:runs/llama3_debug --format=python > rebuilt.py
nanigpt show --config=config:llama3_8b --format=html > llama3_8b.html
"""

import sys

from absl import flags

from nanigpt.config.flag import define_config_flag
from nanigpt.config.show import FORMATS, render


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_enum("format", "tree", FORMATS, "how to print it", flag_values=values)
    flags.DEFINE_bool(
        "why", False, "tell who set each value, and what it was before", flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    color = sys.stdout.isatty()
    print(render(values.config, format=values.format, color=color, why=values.why))
    return 0

"""Print the content fingerprint of a config, which is equal for configs that build the same run.

nanigpt fingerprint --config=config:llama3_8b --config=tag:LearningRate=1e-4
nanigpt fingerprint --run_dir=runs/llama3_debug
"""

from absl import flags

from nanigpt.cli.run_flag import define_config_or_run
from nanigpt.config.record.fingerprint import fingerprint


def define_flags(values: flags.FlagValues) -> None:
    define_config_or_run(values, default="config:llama3_debug")


def run(values: flags.FlagValues) -> int:
    print(fingerprint(values.config))
    return 0

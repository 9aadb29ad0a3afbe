"""Print the content fingerprint of a config, which is equal for configs that build the same run.

nanigpt fingerprint --config=config:llama3_8b --config=tag:LearningRate=1e-4
"""

from absl import flags

from nanigpt.config.compose.flag import define_config_flag
from nanigpt.config.record.fingerprint import fingerprint


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")


def run(values: flags.FlagValues) -> int:
    print(fingerprint(values.config))
    return 0

"""Check a config: types, required arguments, sharing, and every component's own rules, on meta.

nanigpt check --config=config:llama3_405b --config=set:global_batch_size=100 --ranks=512
"""

from typing import Any

from absl import flags

from nanigpt.config.blame import blaming
from nanigpt.config.build import check
from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.flag import define_config_flag
from nanigpt.errors import UsageError
from nanigpt.models.protocol import parameter_counts
from nanigpt.training.trainer import Trainer


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_integer(
        "ranks", None, "processes that it is to run on", lower_bound=1, flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    with blaming(values.config, values["config"].directives):
        built = check(values.config)
        if isinstance(built, Trainer):
            ranks = values.ranks or built.parallelizer.mesh.least
            device = None if built.device == "auto" else built.device
            built.check(ranks, device)
        elif values.ranks is not None:
            raise UsageError(f"--ranks: the config builds {type(built).__name__}, not a Trainer")
    print(f"no problems; {_describe(built)}, fingerprint {fingerprint(values.config)}")
    return 0


def _describe(built: Any) -> str:
    if not isinstance(built, Trainer):
        return f"builds {type(built).__name__}, which is no Trainer"
    length = built.sequence_length
    batch = "samples" if length is None else f"x {length} tokens"
    return (
        f"{parameter_counts(built.model)}, {built.steps:,} steps of {built.global_batch_size} "
        f"{batch}"
    )

"""Check a config: types, required arguments, sharing, and every component's own rules, on meta.

nanigpt check --config=config:llama3_405b --config=set:global_batch_size=100 --ranks=512
"""

from absl import flags

from nanigpt.cli.trainer import build_trainer
from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.flag import define_config_flag


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_integer(
        "ranks", None, "processes that it is to run on", lower_bound=1, flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    trainer = build_trainer(values.config)
    if values.ranks is not None:
        trainer.check_ranks(values.ranks)
    print(
        f"no problems; {trainer.model.n_parameters():,} parameters, {trainer.steps:,} steps of "
        f"{trainer.global_batch_size} x {trainer.data.sequence_length} tokens, "
        f"fingerprint {fingerprint(values.config)}"
    )
    return 0

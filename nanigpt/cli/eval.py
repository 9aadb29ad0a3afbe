"""Validation loss and bits per byte of a run's newest checkpoint.

nanigpt eval --run=runs/llama3_debug
"""

import json

from absl import flags

from nanigpt.cli.restored import restore
from nanigpt.cli.run_flag import define_run_flag


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values)


def run(values: flags.FlagValues) -> int:
    trainer, world, progress = restore(values)
    trainer.check(world)
    result = trainer.evaluation.run(trainer.model, trainer.loss, trainer.data, world)
    if world.is_main:
        print(json.dumps({"step": progress.step, **result}))
    return 0

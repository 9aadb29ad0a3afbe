"""Validation loss and bits per byte of a run's newest checkpoint.

nanigpt eval --run=runs/llama3_debug
"""

import json
import logging

from absl import flags

from nanigpt import tags
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import restore

log = logging.getLogger(__name__)


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values)


def run(values: flags.FlagValues) -> int:
    # A run of a GPU can be evaluated without one: any device has the compute dtype, and attention.
    trainer, parallel, progress = restore(
        values, instead={tags.Float8: None, tags.AttentionCore: None}
    )
    world = parallel.layout.world
    trainer.check(world)
    if world.is_main and progress.step and progress.text != trainer.data.digest:
        log.warning("the text is not that of the checkpoint: this is another validation loss")
    result = trainer.evaluate(parallel)
    if world.is_main:
        print(json.dumps({"step": progress.step, **result}))
    return 0

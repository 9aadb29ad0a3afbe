"""Evaluate a run's newest checkpoint.

nanigpt eval --run_dir=runs/llama3_debug
nanigpt eval --run_dir=runs/llama3_debug --evaluation=val
"""

import json
import logging

from absl import flags

from nanigpt import tags
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import restore
from nanigpt.errors import UnknownName
from nanigpt.problems import refuse_all
from nanigpt.training.loop import evaluate

log = logging.getLogger(__name__)


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values)
    flags.DEFINE_multi_string(
        "evaluation",
        [],
        "name of an evaluation of the run; repeat the flag for several (default: all)",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    # A run of a GPU can be evaluated without one: any device has the compute dtype, and attention.
    assembly, parallel, progress = restore(
        values, instead={tags.Float8: None, tags.AttentionCore: None}
    )
    trainer = assembly.root
    for name in values.evaluation:
        if name not in trainer.evaluations:
            problem = f"--evaluation={name}: the run has no such evaluation"
            raise UnknownName(problem, name, trainer.evaluations)
    names = values.evaluation or list(trainer.evaluations)
    with assembly.located():
        refuse_all(trainer.data_problems())
        trainer.data.setup()
        for name in names:
            trainer.evaluations[name].setup()
    world = parallel.layout.world
    if world.is_main and progress.step and progress.text != trainer.data.digest:
        log.warning("the data are not those of the checkpoint: these are other validation numbers")
    with assembly.located():
        result = evaluate(trainer, parallel, names)
    if world.is_main:
        print(json.dumps({"step": progress.step, **result}))
    return 0

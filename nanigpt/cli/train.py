"""Train a run, or resume it by the same command.

nanigpt train
nanigpt train --config=config:llama3_1b --config='fiddler:steps(500)' --run=runs/short
torchrun --nproc-per-node=2 -m nanigpt train --config=config:llama3_debug
"""

import sys

from absl import flags

from nanigpt.cli.launch_record import record_launch
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import assemble_trainer, require_recordable
from nanigpt.config.compose.flag import config_flag, define_config_flag, recipe_name
from nanigpt.config.flatten import flat
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import choose_run, claim_run
from nanigpt.errors import MisfitError, RankError
from nanigpt.files import write_atomically
from nanigpt.parallel.world import start_world
from nanigpt.training.loop import train
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trackers.tracker import RunInfo


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    define_run_flag(values, "directory of the run (default: runs/RECIPE)")
    flags.DEFINE_bool(
        "allow_config_change",
        False,
        "go on with a run whose recorded config differs",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    cfg, directives = values.config, config_flag(values).directives
    path = values.run or choose_run("runs", recipe_name(directives), cfg)
    directory = RunDirectory(path)
    assembly = assemble_trainer(cfg, directives=directives)
    require_recordable(assembly)
    trainer = assembly.root
    world = start_world(trainer.device)
    with assembly.located():
        prepared = trainer.prepare(world, directory)
    identity = fingerprint(cfg)
    if len(set(world.gather(identity))) > 1:
        raise RankError(
            f"rank {world.rank} has a config of fingerprint {identity}, other ranks have another: "
            "start all with the same command line and the same code"
        )
    recorded = None
    if world.is_main:
        directory.lock()
        recorded = directory.config.read_text() if directory.config.exists() else None
        changed = claim_run(
            directory.config,
            cfg,
            started=directory.started,
            allow_config_change=values.allow_config_change,
        )
        print(f"run {directory.path}, config {identity[:8]}", flush=True)
        for change in changed:
            print(f"changed since the last launch: {change}")
        record_launch(directory, world, fingerprint=identity)
    world.barrier()
    info = RunInfo(config=flat(cfg), fingerprint=identity, command=sys.argv)
    try:
        train(prepared, info)
    except MisfitError:  # the record stays that of the checkpoint
        if recorded is not None:
            write_atomically(directory.config, recorded)
        raise
    return 0

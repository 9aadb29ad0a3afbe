"""Train a run, or resume it by the same command.

nanigpt train
nanigpt train --config=config:llama3_1b --config='fiddler:steps(500)' --run=runs/short
torchrun --nproc-per-node=2 -m nanigpt train --config=config:llama3_debug
"""

from absl import flags

from nanigpt.cli.launch_record import record_launch
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import build_trainer
from nanigpt.config.flag import define_config_flag, recipe_name
from nanigpt.config.run_config import choose_run, claim_run
from nanigpt.parallel.world import start_world
from nanigpt.training.run_directory import RunDirectory


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    define_run_flag(values, "directory of the run (default: runs/RECIPE)")


def run(values: flags.FlagValues) -> int:
    cfg = values.config
    trainer = build_trainer(cfg)
    path = values.run or choose_run("runs", recipe_name(values["config"].directives), cfg)
    directory = RunDirectory(path)
    world = start_world(trainer.device)
    trainer.check(world)
    if world.is_main:
        directory.lock()
        claim_run(directory.config, cfg, started=directory.started)
        print(f"run {directory.path}", flush=True)
        record_launch(directory, world)
    world.barrier()
    trainer.run(directory, world)
    return 0

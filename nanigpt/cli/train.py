"""Train a run, or resume it by the same command, or by its directory alone.

nanigpt train
nanigpt train --run_dir=runs/llama3_debug
nanigpt train --config=config:llama3_1b --config='fiddler:steps(500)' --run_dir=runs/short
torchrun --nproc-per-node=2 -m nanigpt train --config=config:llama3_debug
"""

import shlex
import sys

from absl import flags

from nanigpt.cli.launch_record import record_launch
from nanigpt.cli.run_flag import define_run_flag, has_config
from nanigpt.cli.trainer import assemble_trainer, require_recordable
from nanigpt.config.compose.flag import config_flag, define_config_flag, recipe_name
from nanigpt.config.flatten import flat
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import choose_run, claim_run
from nanigpt.config.registry import import_flags
from nanigpt.errors import MisfitError, RankError
from nanigpt.files import write_atomically
from nanigpt.parallel.world import start_world
from nanigpt.training.loop import train
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trackers.tracker import RunInfo

_DEFAULT = "config:llama3_debug"


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values, "Train in this directory (default: runs/RECIPE).")
    define_config_flag(values, default_directive=lambda given: _base(values.run_dir, given))
    flags.DEFINE_bool(
        "allow_config_change",
        False,
        "go on with a run whose recorded config differs",
        flag_values=values,
    )


def _base(run: str | None, given: list[str]) -> str:
    """Return the base where none is given: the run's if it is alone, and else the default recipe.

    With edits it is the recipe also for a run that exists, so that the command that began the run
    resumes it, and applies no edit twice.
    """
    resumes = run is not None and not given and has_config(run)
    return f"run:{run}" if resumes else _DEFAULT


def _advice(values: flags.FlagValues, directives: list[str]) -> dict[str, str]:
    """Return the advice for a command without a base that does not fit the run, if this is one."""
    given = config_flag(values).all_arguments
    if values.run_dir is None or directives == given:
        return {}
    edits = [f"--config={d}" for d in (f"run:{values.run_dir}", *given)]
    command = ["nanigpt", "train", *import_flags(), f"--run_dir={values.run_dir}", *edits]
    return {
        "advice": f"without a base, --config edits {_DEFAULT}; begin with the run's own config\n"
        f"  try: {shlex.join(command)}"
    }


def run(values: flags.FlagValues) -> int:
    cfg, directives = values.config, config_flag(values).directives
    path = values.run_dir or choose_run("runs", recipe_name(directives), cfg)
    directory = RunDirectory(path)
    assembly = assemble_trainer(cfg, directives=directives)
    require_recordable(assembly)
    trainer = assembly.root
    if not directory.started:  # a run that has started needs its initial weights no more
        assembly.check(lambda _: assembly.missing())
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
            **_advice(values, directives),
        )
        print(f"run {directory.path}, config {identity[:8]}", flush=True)
        for change in changed:
            print(f"changed since the last launch: {change}")
        record_launch(directory, world, fingerprint=identity)
    world.barrier()
    info = RunInfo(config=flat(cfg), fingerprint=identity, command=sys.argv)
    try:
        with assembly.located():
            train(prepared, info)
    except MisfitError:  # the record stays that of the checkpoint
        if recorded is not None:
            write_atomically(directory.config, recorded)
        raise
    return 0

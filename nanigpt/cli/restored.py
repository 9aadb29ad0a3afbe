"""What `eval` and `generate` share: a run's model, as its newest checkpoint has it."""

import contextlib
from collections.abc import Iterator

from absl import flags

from nanigpt.config.build import build
from nanigpt.config.run_config import load_run
from nanigpt.errors import UsageError
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.training.checkpoint import Progress
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trainer import Trainer


def define_run_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "directory of the run, such as runs/NAME", flag_values=values)


def trainer_of(values: flags.FlagValues) -> Trainer:
    """The recorded config of `--run`, built.

    Raises:
        UsageError: no such run.
    """
    if values.run is None:
        raise UsageError("--run is missing; expected --run=runs/NAME")
    return build(load_run(values.run))


@contextlib.contextmanager
def restored(values: flags.FlagValues, trainer: Trainer) -> Iterator[tuple[World, Progress]]:
    """Joins the world and loads the newest checkpoint of `--run` into the trainer's model."""
    world = start_world(trainer.device)
    try:
        yield world, trainer.restore(RunDirectory(values.run), world)
    finally:
        stop_world()

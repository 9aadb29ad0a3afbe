"""What `eval` and `generate` share: a run's model, as its newest checkpoint has it."""

from absl import flags

from nanigpt.config.build import build
from nanigpt.config.run_config import load_run
from nanigpt.errors import UsageError
from nanigpt.parallel.world import World, start_world
from nanigpt.training.checkpoint import Progress
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trainer import Trainer


def restore(values: flags.FlagValues) -> tuple[Trainer, World, Progress]:
    """Builds the recorded config of `--run` and loads its newest checkpoint.

    Raises:
        UsageError: there is no such run, or it has no checkpoint.
    """
    if values.run is None:
        raise UsageError("--run is missing; expected --run=runs/NAME")
    trainer = build(load_run(values.run))
    world = start_world(trainer.device)
    return trainer, world, trainer.restore(RunDirectory(values.run), world)

"""What commands share: a trainer from a config, and a recorded run's model."""

from typing import Any

from absl import flags

from nanigpt.config.build import build
from nanigpt.config.run_config import load_run
from nanigpt.errors import UsageError
from nanigpt.parallel.world import World, start_world
from nanigpt.training.checkpoint import Progress
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trainer import Trainer


def build_trainer(cfg: Any) -> Trainer:
    """Builds a config whose root is a Trainer.

    Raises:
        UsageError: a component refuses its arguments, or the root is something else.
    """
    trainer = build(cfg)
    if not isinstance(trainer, Trainer):
        raise UsageError(f"the config builds {type(trainer).__name__}, not a Trainer")
    return trainer


def restore(
    values: flags.FlagValues, *, tags: dict[Any, Any] | None = None
) -> tuple[Trainer, World, Progress]:
    """Builds the recorded config of `--run` and loads its newest checkpoint.

    Args:
        tags: values that differ from the recorded config.

    Raises:
        UsageError: there is no such run, or it has no checkpoint.
    """
    if values.run is None:
        raise UsageError("--run is missing; expected --run=runs/NAME")
    try:
        cfg = load_run(values.run, tags=tags)
    except UsageError as error:
        raise error.within("--run") from error
    trainer = build_trainer(cfg)
    world = start_world(trainer.device)
    return trainer, world, trainer.restore(RunDirectory(values.run), world)

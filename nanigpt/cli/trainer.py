"""What commands share: a trainer from a config, and a recorded run's model."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from absl import flags

from nanigpt.config.check.assembly import Assembly
from nanigpt.config.check.static import problems, record_findings
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.record.run_config import load_run
from nanigpt.errors import UsageError
from nanigpt.parallel.mesh import MESH_AXES
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.world import start_world
from nanigpt.training.checkpoint import Progress
from nanigpt.training.device_checks import device_problems
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import restore as load_model
from nanigpt.training.trainer import Trainer

log = logging.getLogger(__name__)


def build_trainer(cfg: Any, *, directives: Sequence[str] | None = None) -> Trainer:
    """Build a config whose root is a Trainer.

    Args:
        directives: what the command line said, for the commands in messages.

    Raises:
        UsageError: a component refuses its arguments, or the root is something else.
    """
    return assemble_trainer(cfg, directives=directives).root


def checked_trainer(
    cfg: Any,
    *,
    ranks: int | None = None,
    here: bool = False,
    directives: Sequence[str] | None = None,
) -> Trainer:
    """Build a config whose root is a Trainer, and check that it can train.

    Args:
        ranks: processes that it is to run on, by default as few as its mesh permits.
        here: whether it is to train on this machine, which then needs its files.

    Raises:
        UsageError: a component refuses its arguments, the root is something else, or the run cannot
            be trained on that many ranks; the message has everything that is wrong.
    """
    assembly = assemble_trainer(cfg, directives=directives)
    require_recordable(assembly)
    trainer = assembly.root
    assembly.check(
        lambda _: trainer.problems(ranks or trainer.parallelizer.mesh.least),
        lambda _: assembly.missing() if here else (),
    )
    return trainer


def assemble_trainer(cfg: Any, *, directives: Sequence[str] | None = None) -> Assembly:
    """Build a trainer as `build_trainer` does, and keep the path of each object in the config."""
    # Plain modules allocate their weights when they are constructed, but for this.
    with torch.device("meta"):
        assembly = Assembly(cfg, directives=directives)
    assembly.check()
    if not isinstance(assembly.root, Trainer):
        raise UsageError(f"the config builds {type(assembly.root).__name__}, not a Trainer")
    return assembly


def require_recordable(assembly: Assembly) -> None:
    """Check that a run's directory can hold the config.

    Raises:
        UsageError: a value cannot be recorded; the message has all of them.
    """
    assembly.findings += record_findings(assembly.cfg)
    assembly.check()


# A model is looked at on any number of processes, however many trained it.
_ANY_WORLD = {axis.tag: axis.one_process for axis in MESH_AXES}


def on_any_world(cfg: Any) -> Any:
    """Return a copy of a config in which any number of ranks shards the whole model."""
    cfg = copy.deepcopy(cfg)
    for tag, value in _ANY_WORLD.items():
        set_tag(cfg, tag, value)
    return cfg


def recorded_config(values: flags.FlagValues, *, changes: dict[Any, Any] | None = None) -> Any:
    """Load the config that the run `--run_dir` recorded, for any number of processes.

    Args:
        changes: values of tags that differ from the recorded config.

    Raises:
        UsageError: there is no such run, or its components have other arguments by now.
    """
    if values.run_dir is None:
        raise UsageError("--run_dir is missing; expected --run_dir=runs/NAME")
    try:
        cfg = load_run(values.run_dir, tags={**_ANY_WORLD, **(changes or {})})
    except UsageError as error:
        raise error.within("--run_dir") from error
    if found := problems(cfg):  # when it was recorded it had none
        raise UsageError(
            f"--run_dir: {values.run_dir} was recorded by another version of its components: "
            f"{'; '.join(map(str, found))}. Train it by the command that began it (see "
            f"{values.run_dir}/launches.jsonl) with --allow_config_change, which records its "
            "config anew, also where no step is left"
        )
    return cfg


def restore(
    values: flags.FlagValues,
    *,
    changes: dict[Any, Any] | None = None,
    instead: dict[Any, Any] | None = None,
) -> tuple[Assembly, ParallelModel, Progress]:
    """Build the recorded config of `--run_dir` and load its newest checkpoint.

    A CPU stands in for a CUDA device that is not there.

    Args:
        changes: values of tags that differ from the recorded config.
        instead: further ones, where this device has not what the run was trained with; that they
            are taken is told.

    Raises:
        UsageError: there is no such run, or it has no checkpoint.
    """
    assembly = assemble_trainer(recorded_config(values, changes=changes))
    trainer = assembly.root
    world = start_world("auto" if trainer.device == "cuda" else trainer.device)
    found = device_problems(trainer.model, trainer.parallelizer, world.device.type)
    if instead and found:
        if world.is_main:
            taken = ", ".join(f"{tag.__name__}={value}" for tag, value in instead.items())
            log.warning("%s; going on with %s", str(found[0]).partition(";")[0], taken)
        changes = {**(changes or {}), **instead}
        assembly = assemble_trainer(recorded_config(values, changes=changes))
    with assembly.located():
        parallel, progress = load_model(assembly.root, RunDirectory(values.run_dir), world)
    return assembly, parallel, progress

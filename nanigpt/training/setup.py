"""Turn a trainer's parts into a run that is ready on this process."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nanigpt.errors import UsageError
from nanigpt.models.counts import training_flops
from nanigpt.models.init import initialize, materialize
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.world import World
from nanigpt.training.checkpoint import Progress
from nanigpt.training.metrics import Work
from nanigpt.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from nanigpt.training.trainer import Prepared, Trainer

log = logging.getLogger(__name__)


@dataclass
class Session:
    """State of a run in training.

    Attributes:
        peaks: Learning rates of the optimizer's groups, which the schedule scales.
        progress: Progress of the run.
    """

    trainer: "Trainer"
    parallel: ParallelModel
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def world(self) -> World:
        return self.parallel.layout.world


def set_up_model(trainer: "Trainer", world: World) -> ParallelModel:
    """Split the model, then allocate and fill its memory, so that no rank holds it whole."""
    compile = trainer.parallelizer.compile
    # If the whole model is compiled, the loss is a part of it.
    compiled = None
    if compile is not None and compile.loss and compile.scope == "blocks":
        compiled = compile.function
    trainer.task.prepare(trainer.model, compiled)
    parallel = trainer.parallelizer.parallelize(
        trainer.model,
        trainer.parallelizer.mesh.layout(world),
        local_batch=trainer.local_batch(world.size),
    )
    # Offloaded shards are copied to the device when they are used.
    offloaded = trainer.parallelizer.fsdp.cpu_offload and world.size > 1
    materialize(parallel.model, world.device, parameters="cpu" if offloaded else None)
    initialize(parallel.model, seed=trainer.seed)
    return parallel


def new_session(trainer: "Trainer", world: World) -> Session:
    """Set up model and optimizer before the first step, without looking for a checkpoint."""
    parallel = set_up_model(trainer, world)
    return Session(trainer, parallel, trainer.optimizer(parallel.model.named_parameters()))


def resume(prepared: "Prepared") -> Session:
    """Set up model and optimizer from the newest checkpoint, or as before the first step.

    Raises:
        MisfitError: The checkpoint belongs to another model or optimizer.
    """
    trainer, run, world = prepared.trainer, prepared.run, prepared.world
    session = new_session(trainer, world)
    model = session.parallel.model
    resumed = trainer.checkpointer.load_latest(run, world, model, session.optimizer)
    if resumed is not None:
        session.progress = resumed
    elif prepared.weights is not None:
        prepared.weights.load(model)
    prepared.weights = None  # otherwise its files would stay open
    if session.progress.step and session.progress.text != trainer.data.digest and world.is_main:
        log.warning("the data are not those of the checkpoint: resuming on other samples")
    session.progress.text = trainer.data.digest
    return session


def restore(trainer: "Trainer", run: RunDirectory, world: World) -> tuple[ParallelModel, Progress]:
    """Set up the model of the newest checkpoint, to evaluate or sample.

    Raises:
        UsageError: The run has no checkpoint yet.
    """
    parallel = set_up_model(trainer, world)
    progress = trainer.checkpointer.load_latest(run, world, parallel.model)
    if progress is None:
        raise UsageError(f"{run.path} has no checkpoint yet; train it first")
    return parallel, progress


def step_work(trainer: "Trainer") -> Work:
    """Count the work of a step, while the model is in one place and the data are set up."""
    model, length, size = trainer.model, trainer.sequence_length, trainer.global_batch_size
    counted: Any = getattr(model, "flops_per_token", None)
    if length is not None and counted is not None:
        return Work("tokens", size * length, counted(length))
    flops = _flops_of_sample(trainer)
    if length is None:
        return Work("samples", size, flops)
    return Work("tokens", size * length, None if flops is None else flops / length)


def describe(prepared: "Prepared", layout: Layout, progress: Progress) -> list[str]:
    """Describe the coming training in a few lines."""
    trainer, world = prepared.trainer, prepared.world
    ranks = f"{world.size} x {world.device.type}" + (f" ({layout})" if world.size > 1 else "")
    length = trainer.sequence_length
    step = "samples" if length is None else f"x {length} tokens"
    lines = [
        f"{prepared.counts} on {ranks}",
        *([trainer.data.summary()] if hasattr(trainer.data, "summary") else []),
        f"{trainer.global_batch_size} {step} per step",
    ]
    found = [", ".join(lines)]
    if progress.step >= trainer.steps:
        found.append(f"already at step {progress.step} of {trainer.steps}: nothing to train")
    elif progress.step:
        found.append(f"resuming after step {progress.step}")
    elif trainer.initial_weights is not None:
        found.append(f"weights of {trainer.initial_weights}")
    return found


def _flops_of_sample(trainer: "Trainer") -> float | None:
    """Count the training FLOPs of a sample on meta; return None if the model does not run there."""
    task = trainer.task
    batch = trainer.data.train_batch(range(1), seed=trainer.seed).to(torch.device("meta"))
    first, places = task.inputs(batch)
    targets = task.targets(batch)

    def forward(model: torch.nn.Module) -> torch.Tensor:
        return model(first, **places, finish=task.finish, targets=targets)

    try:
        return training_flops(trainer.model, forward)
    except (RuntimeError, NotImplementedError) as error:
        log.warning("no MFU: the model does not run on meta, to count its FLOPs (%s)", error)
        return None

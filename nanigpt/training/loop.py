"""Run the training loop.

`steps` is the textbook's loop. `rows` adds the run's work around each step: metrics, evaluations,
checkpoints, profiles. `train` is a whole run.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from nanigpt.data.batch import Batch
from nanigpt.optim.groups import learning_rates
from nanigpt.parallel.compile import Compilations
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.training.checkpoint import Progress
from nanigpt.training.evaluation import named_numbers
from nanigpt.training.setup import Session, describe, resume
from nanigpt.training.trackers.tracker import Row, RunInfo

if TYPE_CHECKING:
    from nanigpt.training.trainer import Prepared, Trainer


_BY_HAND = RunInfo()  # for a trainer without a config


def train(prepared: "Prepared", info: RunInfo = _BY_HAND) -> Progress:
    """Train to the last step, from the newest checkpoint if there is one, and show a sample."""
    session = resume(prepared)
    for _ in rows(session, prepared, info):
        pass
    trainer = prepared.trainer
    sample = trainer.task.show(session.parallel, trainer.data)
    if sample is not None and prepared.world.is_main:
        print(sample, flush=True)
    return session.progress


def rows(session: Session, prepared: "Prepared", info: RunInfo = _BY_HAND) -> Iterator[Row]:
    """Train the remaining steps; yield each step's row after the run's other work for that step."""
    trainer, run, world = prepared.trainer, prepared.run, prepared.world
    parallel, progress, metrics = session.parallel, session.progress, trainer.metrics
    with contextlib.ExitStack() as until_the_end:  # of training, or until an interruption
        opened = until_the_end.enter_context
        collect_garbage = opened(trainer.garbage_collection.scheduled())
        profiler = opened(trainer.profiling.open(run, parallel.layout, step=progress.step))
        stepping = opened(contextlib.closing(steps(session, before=profiler.before)))
        parallel.phase = profiler.enter
        info = _told(info, session, prepared)
        metrics.open(trainer.trackers, info, world, work=prepared.work, clock=profiler.clock)
        opened(contextlib.closing(metrics))  # writes all rows, and leaves the terminal whole
        compilations = Compilations() if trainer.parallelizer.compile is not None else None

        for row in stepping:
            if compilations is not None:  # the second step may find changes by the first
                row["compilations"] = compilations.after("training step", settled=2)
            if profiler.is_due(progress.step):
                with metrics.paused():
                    row |= profiler.write(progress.step)
            if due := due_evaluations(trainer, progress.step):
                with metrics.paused():
                    row |= evaluate(trainer, parallel, due)
                if compilations is not None:
                    row["compilations"] = compilations.after("evaluation", settled=1)
            metrics.record(row, flush=bool(due))
            if trainer.checkpointer.is_due(progress.step, trainer.steps):
                metrics.flush()  # a checkpoint promises a row for every earlier step
                model, optimizer = parallel.model, session.optimizer
                with metrics.paused():
                    trainer.checkpointer.save(run, world, model, optimizer, progress)
            metrics.check()
            collect_garbage(progress.step)
            yield row


def steps(
    session: Session, *, before: Callable[[int], None] = lambda step: None
) -> Generator[Row, None, None]:
    """Train the remaining steps; yield the row of each, whose losses are on the device.

    Args:
        before: Function to call with the number of each step, counted from 1, before it begins.
    """
    trainer, progress, optimizer = session.trainer, session.progress, session.optimizer
    length = trainer.sequence_length
    with batches(session) as ahead:
        while progress.step < trainer.steps:
            before(progress.step + 1)
            factor = trainer.factor(progress.step)
            for group, peak in zip(optimizer.param_groups, session.peaks, strict=True):
                group["lr"] = peak * factor
            session.parallel.phase("data")
            losses = train_step(session, next(ahead))
            progress.step += 1
            progress.samples += trainer.global_batch_size
            progress.tokens += trainer.global_batch_size * (length or 0)
            row = {"step": progress.step, **losses, **learning_rates(optimizer)}
            yield row | ({"samples": progress.samples} if length is None else
                         {"tokens": progress.tokens})  # fmt: skip


def train_step(session: Session, microbatches: Iterable[Batch]) -> Row:
    """Take one optimizer step.

    Returns:
        Global mean losses, gradient norm, and the load of experts, on the device.
    """
    task, parallel, optimizer = session.trainer.task, session.parallel, session.optimizer
    shards = [parallel.shard(batch) for batch in microbatches]
    parallel.phase("other")
    # The weight is known before the first backward pass, so each microbatch counts by its own
    # weight.
    weight = parallel.layout.sum(torch.stack([task.weight(shard) for shard in shards]).sum())
    losses = parallel.forward_backward(task, shards, weight)
    parallel.phase("optimizer")
    norm = parallel.clip_gradients(session.trainer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    balance = parallel.balance()
    parallel.phase("other")
    return {**losses, "grad_norm": norm, **balance}


def evaluate(
    trainer: "Trainer", parallel: ParallelModel, names: Iterable[str] | None = None
) -> Row:
    """Run the evaluations with these names, or all; prefix the numbers with these names."""
    found: Row = {}
    for name in trainer.evaluations if names is None else names:
        evaluation = trainer.evaluations[name]
        numbers = evaluation.run(parallel, trainer.task, trainer.data)
        found |= named_numbers(name, evaluation, numbers)
    return found


def due_evaluations(trainer: "Trainer", step: int) -> list[str]:
    """Return the names of the evaluations to run after a step."""
    due = trainer.evaluations.items()
    return [name for name, evaluation in due if evaluation.is_due(step, trainer.steps)]


def batches(session: Session) -> contextlib.AbstractContextManager[Iterator[list[Batch]]]:
    """Open the microbatches of each remaining step, and read them ahead of it."""
    trainer, progress, world = session.trainer, session.progress, session.world
    size, first = trainer.global_batch_size, progress.samples
    samples = range(first, first + (trainer.steps - progress.step) * size, size)
    return trainer.loader.open(lambda first: microbatches(session, first), samples, world.device)


def microbatches(session: Session, first: int) -> list[Batch]:
    """Return this rank's samples of the global batch that begins with sample `first`."""
    trainer, layout = session.trainer, session.parallel.layout
    share = trainer.global_batch_size // layout.data_size
    size = share // trainer.accumulation_steps(layout.world.size)
    begin = first + layout.data_rank * share
    starts = range(begin, begin + share, size)
    return [trainer.data.train_batch(range(s, s + size), seed=trainer.seed) for s in starts]


def _told(info: RunInfo, session: Session, prepared: "Prepared") -> RunInfo:
    """Fill in the facts of this run for trackers."""
    trainer, parallel = session.trainer, session.parallel
    return dataclasses.replace(
        info,
        directory=prepared.run.path,
        step=session.progress.step,
        steps=trainer.steps,
        losses=trainer.task.losses(parallel.model),
        evaluations=list(trainer.evaluations),
        summary=describe(prepared, parallel.layout, session.progress),
    )

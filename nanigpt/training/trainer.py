"""Define the root of every run's DAG: the parts of a run, and checks that they fit together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from torch import nn

from nanigpt import tags
from nanigpt.data.loader import Loader
from nanigpt.data.protocol import DataSource
from nanigpt.errors import UsageError
from nanigpt.models.counts import ParameterCounts
from nanigpt.models.protocol import max_sequence_length, parameter_counts
from nanigpt.optim.groups import require_matches
from nanigpt.optim.schedule import LearningRateSchedule, factor
from nanigpt.parallel.parallelizer import Parallelizer
from nanigpt.parallel.world import Device, World
from nanigpt.problems import (
    ComponentError,
    Fix,
    Problem,
    on_behalf_of,
    refuse,
    refuse_all,
    reported,
)
from nanigpt.tasks.task import Task
from nanigpt.training.checkpoint import Checkpointer, Progress
from nanigpt.training.device_checks import device_problems
from nanigpt.training.evaluation import Evaluates
from nanigpt.training.garbage import GarbageCollection
from nanigpt.training.loop import train
from nanigpt.training.metrics import Metrics, Work
from nanigpt.training.parts import check_trackers, part_problems
from nanigpt.training.profiling import Profiling
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import step_work
from nanigpt.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from nanigpt.models.decoder import Decoder
    from nanigpt.models.huggingface.reader import Pretrained


class Trainer:
    """Trainer of a model: all parts of a run, under one node.

    Args:
        model: Module with the forward pass of `nanigpt.models.protocol`.
        data: Samples to train on.
        task: Training task of the model.
        optimizer: Function that makes the optimizer from named parameters, which exist only once
            the model is sharded; in a DAG an `fdl.Partial`.
        schedule: Function that returns the factor on the peak learning rate, given the number of
            the step, counted from 0, and the number of steps.
        evaluations: Evaluations during training, by the prefix of their numbers' names.
        trackers: Destinations of the metrics.
        steps: Number of optimizer steps.
        global_batch_size: Samples per optimizer step, over all ranks.
        local_batch_size: Samples in one forward pass of one rank. Each rank accumulates gradients
            over several passes until the global batch is complete. None takes a rank's whole share
            at once.
        max_grad_norm: Largest global norm of gradients. Gradients of a larger norm are scaled down
            to it.
        seed: Seed of initial weights and sample order.
        device: `cpu`, `cuda` or `auto`.
        initial_weights: Folder of Hugging Face weights that training starts from, or None for
            random ones.
    """

    may_change_on_resume = ("device", "local_batch_size", "evaluations", "trackers")

    def __init__(
        self,
        *,
        model: nn.Module,
        data: DataSource,
        task: Task[Any],
        loader: Loader,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: LearningRateSchedule,
        parallelizer: Parallelizer,
        evaluations: Mapping[str, Evaluates],
        checkpointer: Checkpointer,
        metrics: Metrics,
        trackers: Sequence[Tracker],
        garbage_collection: GarbageCollection,
        profiling: Profiling,
        steps: Annotated[int, tags.Steps],
        global_batch_size: Annotated[int, tags.GlobalBatchSize],
        local_batch_size: Annotated[int | None, tags.LocalBatchSize] = None,
        max_grad_norm: float = 1.0,
        seed: Annotated[int, tags.Seed] = 0,
        device: Device = "auto",
        initial_weights: str | None = None,
    ):
        if steps < 1:
            refuse("steps", steps, "at least 1")
        if global_batch_size < 1:
            refuse("global_batch_size", global_batch_size, "at least 1")
        if local_batch_size is not None and local_batch_size < 1:
            refuse("local_batch_size", local_batch_size, "at least 1")
        if not max_grad_norm > 0:  # an infinite one never scales gradients down
            refuse("max_grad_norm", max_grad_norm, "more than 0")
        if not 0 <= seed < 2**63:
            refuse("seed", seed, "0 to 2**63 - 1")
        self.model = model
        self.data = data
        self.task = task
        self.loader = loader
        self.optimizer = optimizer
        self.schedule = schedule
        self.parallelizer = parallelizer
        self.evaluations = evaluations
        self.checkpointer = checkpointer
        self.metrics = metrics
        self.trackers = trackers
        self.garbage_collection = garbage_collection
        self.profiling = profiling
        self.steps = steps
        self.global_batch_size = global_batch_size
        self.local_batch_size = local_batch_size
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.device = device
        self.initial_weights = initial_weights
        refuse_all(self._misfits())

    @property
    def sequence_length(self) -> int | None:
        """Return the number of tokens in a sample, or None if samples are not sequences."""
        return getattr(self.data, "sequence_length", None)

    def run(self, run: RunDirectory, world: World) -> Progress:
        """Train to the last step, from the newest checkpoint of `run` if there is one.

        Raises:
            UsageError: Parts of the run do not fit; nothing was trained.
        """
        return train(self.prepare(world, run))

    def prepare(self, world: World, run: RunDirectory) -> "Prepared":
        """Check the run and prepare its data on every rank, before anything is written.

        Raises:
            UsageError: Model and batch cannot be divided, the device, a package or a file is
                missing, the data does not fit the model, the optimizer refuses its arguments, or
                the initial weights belong to another model.
        """
        self.check(world.size, world.device.type)
        refuse_all(self.data_problems())
        check_trackers(self.trackers, world)
        self.data.setup()
        for evaluation in self.evaluations.values():
            evaluation.setup()
        counts = parameter_counts(self.model)
        return Prepared(self, run, world, counts, step_work(self), self._pretrained(run))

    def check(self, ranks: int, device: str | None = None) -> None:
        """Raise the ComponentError of all `problems`, unless there are none."""
        refuse_all(self.problems(ranks, device))

    def problems(self, ranks: int, device: str | None = None) -> list[Problem]:
        """Return the reasons why the run cannot train on `ranks` ranks; read no file.

        Args:
            device: Kind of the ranks' devices, or None if unknown.
        """
        mesh = self.parallelizer.mesh
        found = [replace(problem, component=mesh) for problem in mesh.problems(ranks)]
        if found:  # the other problems hold for any number of ranks
            ranks = mesh.least
            if mesh.problems(ranks):
                return found
        local = self.local_batch(ranks)
        plan = self.parallelizer.plan(
            ranks,
            local_batch=local,
            sequence_length=self.sequence_length,
            mask_documents=getattr(self.data, "mask_documents", False),
            data=self.data,
            trainer=self,
        )
        found += self.parallelizer.problems(self.model, plan)
        whole = local * self._readers(ranks)
        if self.global_batch_size % whole:
            expected = (
                f"a multiple of local batch {local} x {self._readers(ranks)} data-parallel ranks = "
                f"{whole}"
            )
            fix = f"a multiple of {whole}, or another local_batch_size"
            batch_size = self.global_batch_size
            found.append(Problem("global_batch_size", batch_size, expected, fix, component=self))
        found += reported(self.task, self.task.problems(self.model, self.data))
        found += device_problems(self.model, self.parallelizer, device)
        if device is not None:
            found += self.profiling.device_problems(device)
        return [*found, *self._optimizer_problems(), *part_problems(self)]

    def missing(self) -> list[Problem]:
        """Return a problem if the initial weights are not on this machine; open no file."""
        if self.initial_weights is None or (Path(self.initial_weights) / "config.json").is_file():
            return []
        expected = "a folder with config.json and safetensors"
        return [Problem("initial_weights", self.initial_weights, expected, component=self)]

    def data_problems(self) -> list[Problem]:
        """Return why the data do not fit the model; read small files, such as a tokenizer's."""
        answer = self.task.data_problems(self.model, self.data)
        return reported(self.task, answer, "data_problems")

    def local_batch(self, ranks: int) -> int:
        """Return the number of samples that one of `ranks` ranks computes at a time."""
        return self.local_batch_size or max(self.global_batch_size // self._readers(ranks), 1)

    def factor(self, step: int) -> float:
        """Return the schedule's factor of the peak learning rate in a step, counted from 0."""
        with on_behalf_of(self):
            return factor(self.schedule, step, self.steps)

    def accumulation_steps(self, ranks: int) -> int:
        """Return local batches of one rank per step: global / (local x data-parallel ranks)."""
        return self.global_batch_size // (self.local_batch(ranks) * self._readers(ranks))

    def _readers(self, ranks: int) -> int:
        """Return the number of ranks that read different samples."""
        sizes = self.parallelizer.mesh.sizes(ranks)
        return sizes["dp_replicate"] * sizes["dp_shard"]

    def _misfits(self) -> list[Problem]:
        """Return a problem for arguments that do not fit together on any number of ranks."""
        found = []
        warmup = getattr(self.schedule, "warmup_steps", 0)
        if warmup >= self.steps:
            fix = Fix(self.schedule, "warmup_steps", self.steps // 10)
            expected = f"less than steps={self.steps}"
            given = ((self, "steps"),)
            found.append(Problem("warmup_steps", warmup, expected, fix, self.schedule, given))
        length, longest = self.sequence_length, max_sequence_length(self.model)
        if length is not None and longest is not None and length > longest:
            fix = Fix(self.data, "sequence_length", longest)
            expected = f"at most the {longest} positions of the model"
            found.append(Problem("sequence_length", length, expected, fix, self.data))
        return found + self.profiling.problems(self.steps)

    def _optimizer_problems(self) -> list[Problem]:
        """Return problems with the optimizer's arguments and with selectors without a match."""
        try:
            with on_behalf_of(self.optimizer):
                require_matches(self.optimizer(self.model.named_parameters()))
        except ComponentError as error:
            return list(error.problems)
        except Exception as error:  # an optimizer of another package may raise anything
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return [Problem("", ..., f"other arguments: {kind}{error}", component=self.optimizer)]
        return []

    def _pretrained(self, run: RunDirectory) -> "Pretrained | None":
        """Return the initial weights, if the run begins with some and has no checkpoint yet."""
        if self.initial_weights is None or self.checkpointer.latest(run):
            return None
        from nanigpt.models.huggingface.reader import Pretrained

        try:
            return Pretrained(self.initial_weights, cast("Decoder", self.model))
        except UsageError as error:
            expected = f"a folder with weights of this model; {error}"
            problem = Problem("initial_weights", self.initial_weights, expected, component=self)
            raise ComponentError(problem) from error


@dataclass
class Prepared:
    """Checked run with all data that it reads.

    Attributes:
        counts: Parameter counts of the whole model.
        work: Work of a step.
        weights: Initial weights to load, or None.
    """

    trainer: Trainer
    run: RunDirectory
    world: World
    counts: ParameterCounts
    work: Work
    weights: "Pretrained | None" = None

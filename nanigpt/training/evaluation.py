"""Compute numbers on held-out samples."""

import inspect
import numbers
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Protocol

import torch

from nanigpt.data.batch import Batch
from nanigpt.data.protocol import DataSource
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.problems import ComponentError, Problem, refuse, show
from nanigpt.tags import Unit
from nanigpt.tasks.task import Task


class Evaluates(Protocol):
    """Interface between trainer and evaluation. All ranks call its methods together."""

    def setup(self) -> None:
        """Read the data that the evaluation needs. Called once, before training begins."""

    def is_due(self, step: int, steps: int, /) -> bool:
        """Return whether to evaluate after step `step` of `steps`."""
        ...

    def run(
        self, parallel: ParallelModel, task: Task[Any], data: DataSource, /
    ) -> dict[str, float]:
        """Return named numbers; `data` is the training data."""
        ...


def return_problems(evaluation: Evaluates) -> list[Problem]:
    """Return a problem if an evaluation's annotation says that it returns no mapping."""
    try:
        said = typing.get_type_hints(type(evaluation).run).get("return", Any)
    except Exception:  # an annotation that cannot be resolved says nothing
        return []
    kind = typing.get_origin(said) or said
    if said is Any or not isinstance(kind, type):
        return []
    if issubclass(kind, Mapping) or issubclass(Mapping, kind):  # object may be a mapping
        return []
    return [_wrong(evaluation, inspect.formatannotation(said))]


def named_numbers(name: str, evaluation: Evaluates, found: Any) -> dict[str, Any]:
    """Return the numbers that an evaluation returned, under names that begin with its name.

    Raises:
        ComponentError: The evaluation, which may be the user's, returned something else.
    """
    if not isinstance(found, Mapping):
        raise ComponentError(_wrong(evaluation, type(found).__name__))
    for key, value in found.items():
        single = isinstance(value, torch.Tensor) and value.numel() == 1
        if not (single or isinstance(value, numbers.Real)):
            raise ComponentError(_wrong(evaluation, f"{show(value)} for {show(key)}"))
    return {
        f"{name}_{key}": value if isinstance(value, int | float | torch.Tensor) else float(value)
        for key, value in found.items()
    }


def _wrong(evaluation: Evaluates, told: str) -> Problem:
    method = f"{type(evaluation).__name__}.run()"
    expected = f"{method} to return a mapping of names to numbers, not {told}"
    return Problem("", ..., expected, component=evaluation)


class Evaluation:
    """Evaluation of the task on a fixed set of samples, spread evenly over the validation split.

    Args:
        data: Dataset to evaluate on; None takes the validation split of the training data.
        interval: Steps between evaluations; the last step is always evaluated.
        n_samples: Number of samples; the whole split if it has fewer.
        batch_size: Samples in one forward pass of one rank.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        data: DataSource | None = None,
        interval: Annotated[int, Unit("steps")] = 1000,
        n_samples: int = 1024,
        batch_size: Annotated[int, Unit("samples")] = 8,
    ):
        sizes = {"interval": interval, "n_samples": n_samples, "batch_size": batch_size}
        for name, value in sizes.items():
            if value < 1:
                refuse(name, value, "at least 1")
        self.data = data
        self.interval = interval
        self.n_samples = n_samples
        self.batch_size = batch_size

    def setup(self) -> None:
        if self.data is not None:
            self.data.setup()

    def is_due(self, step: int, steps: int, /) -> bool:
        return step % self.interval == 0 or step == steps

    @torch.no_grad()
    def run(
        self, parallel: ParallelModel, task: Task[Any], data: DataSource, /
    ) -> dict[str, float]:
        own = data if self.data is None else self.data
        model = parallel.model
        was_training = model.training
        model.eval()
        try:
            return task.evaluate(parallel, own, self._batches(parallel, own))
        finally:
            model.train(was_training)

    def _batches(self, parallel: ParallelModel, data: DataSource) -> Iterator[tuple[Batch, float]]:
        """Yield the shards of this rank, and whether they count.

        Every rank runs the same number of forward passes, since all ranks gather sharded parameters
        together. A rank that has run out of samples repeats one, which does not count.
        """
        available, layout = data.n_validation, parallel.layout
        n = min(self.n_samples, available)
        chosen = [i * available // n for i in range(n)]
        for start in range(0, n, self.batch_size * layout.data_size):
            begin = start + layout.data_rank * self.batch_size
            mine = chosen[begin : begin + self.batch_size]
            batch = data.validation_batch(mine or chosen[:1])
            yield parallel.shard(batch), float(bool(mine))

"""A decoder that is divided over ranks, with an interface for training and evaluation."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from nanigpt.data.batch import Batch
from nanigpt.models.linear import Linear
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.expert_load import settle_load
from nanigpt.parallel.gradients import clip_gradients, settle
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.objective import Objective
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import common_scales


class ParallelModel:
    """The part of a model on this rank. All ranks call each method together.

    Attributes:
        model: The modules of this rank, under the names of the whole decoder. A call with tokens
            and caches, as in sampling, returns all logits on every rank.
        layout: The place of this rank.
        tensor: The policy of tensor parallelism.
        context: The policy of context parallelism.
        n_experts: Largest number of experts in any layer of the whole decoder, or 0.
        float8: Layers whose weights are gathered in float8.
        phase: Function that is called with the name of the next phase of a step, such as
            `forward`. A profiler can replace it to time the phases.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layout: Layout,
        *,
        tensor: TensorParallel,
        context: ContextParallel,
        n_experts: int,
        float8: Sequence[Linear] = (),
    ):
        self.model = model
        self.layout = layout
        self.tensor = tensor
        self.context = context
        self.n_experts = n_experts
        self.float8 = float8
        self.phase: Callable[[str], None] = lambda phase: None

    def shard(self, batch: Batch) -> Batch:
        """Return the part of a batch that this rank computes, on its device."""
        length = batch.sequence_length()
        if self.layout.sizes["cp"] > 1 and length is not None:
            batch = batch.cut(self.context.positions(length, self.layout))
        return batch.to(self.layout.world.device)

    def forward_backward(
        self, task: Objective[Any], batches: list[Batch], weight: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Add the gradients of the objective over all ranks' batches, and return the mean losses.

        Args:
            task: The task, which defines the losses. The model calls its `finish`.
            batches: Shards of batches, which are computed one after the other.
            weight: Divisor of the global mean, so that gradients only have to be summed. It may be
                0 if all losses are 0. Gradients are then 0, too.
        """
        names = task.losses(self.model)
        totals = torch.zeros(len(names), device=self.layout.world.device)
        weight = torch.where(weight == 0, torch.ones_like(weight), weight)
        with common_scales(self.float8):
            for i, batch in enumerate(batches):
                last = i == len(batches) - 1
                totals += self._forward_backward(task, batch, weight, last=last)
        settle(self.parameters, self.layout, partial=self.partial_gradients)
        return dict(zip(names, self.sum(totals).unbind(), strict=True))

    @functools.cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of this rank.

        They are cached: a walk through all modules takes as long as several kernels of a step.
        """
        return list(self.model.parameters())

    @functools.cached_property
    def partial_gradients(self) -> list[torch.nn.Parameter]:
        """Return the parameters for which each rank of `tp` computes a part of the gradient."""
        if self.layout.sizes["tp"] == 1:
            return []
        return self.tensor.partial_gradients(self.model)

    @property
    def has_loss(self) -> bool:
        """Return whether this rank computes losses, and not only activations for other ranks."""
        return True

    @torch.no_grad()
    def evaluate(self, task: Objective[Any], batch: Batch) -> torch.Tensor:
        """Return the sums of a shard's losses, without gradients; zeros on ranks without losses."""
        with self._evaluating():
            first, places = task.inputs(batch)
            return self.model(first, **places, finish=task.finish, targets=task.targets(batch))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        scales = common_scales(self.float8)
        with self.tensor.loss_context(self.layout), self.tensor.splitting(), scales:
            yield

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor, in place, over all ranks that have losses of different tokens."""
        return self.layout.sum(tensor)

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scale gradients down to a global 2-norm of `max_norm`, and return their original norm."""
        return clip_gradients(self.parameters, max_norm, self.layout)

    def balance(self) -> dict[str, torch.Tensor]:
        """Balance the routers after an optimizer step, and return metrics of the experts' load."""
        if not self.n_experts:
            return {}
        parts = self.tensor.parts(self.layout)
        return settle_load(self.model, self.layout, n_experts=self.n_experts, sequence_parts=parts)

    def _forward_backward(
        self, task: Objective[Any], batch: Batch, weight: torch.Tensor, *, last: bool
    ) -> torch.Tensor:
        if hasattr(self.model, "set_requires_gradient_sync"):  # sharded: gradients are summed once
            model: Any = self.model
            model.set_requires_gradient_sync(last)
        self.phase("forward")
        with self.tensor.loss_context(self.layout):
            first, places = task.inputs(batch)
            targets = task.targets(batch)
            means = self.model(first, **places, finish=task.finish, targets=targets) / weight
            self.phase("backward")
            task.objective(means, self.model).backward()
        return means.detach()

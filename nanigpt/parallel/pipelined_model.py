"""A decoder whose layers are divided among ranks.

Shapes: B batch, L sequence, D dim, V vocab_size.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from nanigpt.data.batch import Batch
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.linear import Linear
from nanigpt.parallel.compile import keeping_buffers
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.dropout import take_back_dropout
from nanigpt.parallel.expert_load import forget_load
from nanigpt.parallel.gradients import clip_gradients
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.objective import Objective
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.pipeline import Stages
from nanigpt.parallel.tensor import TensorParallel


class PipelinedModel(ParallelModel):
    """The stages of this rank. Microbatches pass through the stages of all ranks along `pp`.

    Args:
        stages: The stages of this rank.
        layout, tensor, context, n_experts, float8: See `ParallelModel`.
        dim: Last dim of activations.
        vocab_size: Last dim of logits.
        dtype: Dtype of activations and logits.
        keeps_buffers: Whether compiled backward passes run in two parts.
    """

    def __init__(
        self,
        stages: Stages,
        layout: Layout,
        *,
        tensor: TensorParallel,
        context: ContextParallel,
        n_experts: int,
        float8: Sequence[Linear] = (),
        dim: int,
        vocab_size: int,
        dtype: torch.dtype,
        keeps_buffers: bool = False,
    ):
        super().__init__(
            stages.model, layout, tensor=tensor, context=context, n_experts=n_experts, float8=float8
        )
        self.stages = stages
        self.dim, self.vocab_size, self.dtype = dim, vocab_size, dtype
        self._keeps_buffers = keeps_buffers
        self.group = layout.along("pp").get_group()
        self.model.forward = self._logits
        self._schedule: Any = None
        self._objective: Callable[..., Any] = lambda sums, target: sums
        self._stages: list[Any] = []

    @property
    def has_loss(self) -> bool:
        return self.stages.has_last

    def forward_backward(
        self, task: Objective[Any], batches: list[Batch], weight: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = super().forward_backward(task, batches, weight)
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        lost = [name for name, p in trained if p.grad is None]
        if lost:  # the norm and the optimizer would ignore them
            raise RuntimeError(f"the schedule computed no gradient of {', '.join(lost)}")
        self._sum_tied_gradients()
        return losses

    @torch.no_grad()
    def evaluate(self, task: Objective[Any], batch: Batch) -> torch.Tensor:
        with self._evaluating():
            first, places = task.inputs(batch)
            named: dict[str, Any] = {
                **places,
                "finish": task.finish,
                "targets": task.targets(batch),
            }
            sums = self._forward(first, **named)
        if sums is None:
            sums = torch.zeros(len(task.losses(self.model)), device=self.layout.world.device)
        return sums

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = self.layout.sum(tensor)
        dist.all_reduce(total, group=self.group)
        return total

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        model: Any = self.model
        return clip_gradients(
            self.parameters,
            max_norm,
            self.layout,
            counted_elsewhere=[model.embedding.weight] if self.stages.has_copy else (),
        )

    def _forward_backward(
        self, task: Objective[Any], batch: Batch, weight: torch.Tensor, *, last: bool
    ) -> torch.Tensor:
        if self._schedule is None:
            self._schedule = self._new_schedule()
        for stage in self._stages:
            stage.reduces = last  # gradients of all batches are summed over ranks at once
        first, places = task.inputs(batch)
        self._total = total = torch.zeros(
            len(task.losses(self.model)), device=self.layout.world.device
        )

        def objective(sums: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            means = sums / weight
            total.add_(means.detach())
            # PyTorch detaches it in place, which fails for a view.
            return task.objective(means, self.model).clone()

        self._objective = objective
        # PyTorch calls its loss function only if it gets a target.
        target = {"target": first} if self.stages.has_last else {}
        kept = keeping_buffers() if self._keeps_buffers else contextlib.nullcontext()
        self.phase("pipeline")
        with self.tensor.loss_context(self.layout), kept:
            self._schedule.step(
                *([first] if self.stages.has_first else []),
                **target,
                return_outputs=False,
                **places,
                finish=task.finish,
                targets=task.targets(batch),
            )
        self.phase("backward")  # the rest of it: sums over ranks
        return total

    def _new_schedule(self) -> Any:
        from torch.distributed.pipelining.schedules import (
            PipelineScheduleSingle,
            _PipelineScheduleRuntime,
            get_schedule_class,
        )

        timetable, device = self.stages.timetable, self.layout.world.device
        self._stages = stages = [
            _stage(
                self._within,
                self._learned_shapes,
                part,
                index,
                len(self.stages.rank_of),
                device,
                group=self.group,
            )
            for index, part in self.stages.parts.items()
        ]
        csv = self.stages.csv
        kind = _PipelineScheduleRuntime if csv else get_schedule_class(timetable.schedule)
        schedule = kind(
            stages[0] if issubclass(kind, PipelineScheduleSingle) else stages,
            timetable.microbatches,
            loss_fn=lambda sums, target: self._objective(sums, target),
            scale_grads=False,  # sums are divided by the weight of all microbatches already
        )
        if csv:
            schedule._load_csv(csv)
        return schedule

    def _learned_shapes(self, stage: nn.Module) -> None:
        """Discard results of the pass before the first step, in which PyTorch learns shapes."""
        forget_load(stage)
        take_back_dropout(stage)
        self._total.zero_()

    def _within(self, phase: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run work that does not wait for other stages."""
        self.phase(phase)
        try:
            return function(*args, **kwargs)
        finally:
            self.phase("pipeline")

    def _sum_tied_gradients(self) -> None:
        """Sum the two gradients of a tied weight if embedding and head are on different ranks."""
        stages = self.stages
        if not stages.tied or stages.has_first == stages.has_last:
            return
        other = stages.rank_of[-1] if stages.has_first else stages.rank_of[0]
        model: Any = self.model
        gradient = model.embedding.weight.grad
        if gradient is None:  # the weight is frozen
            return
        mine = getattr(gradient, "_local_tensor", gradient)
        theirs = torch.empty_like(mine)
        operations = [
            dist.P2POp(dist.isend, mine.contiguous(), group=self.group, group_peer=other),
            dist.P2POp(dist.irecv, theirs, group=self.group, group_peer=other),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        mine += theirs

    def _forward(
        self,
        tokens_BL: torch.Tensor,
        caches: list[LayerCache] | None = None,
        **named: Any,
    ) -> torch.Tensor | None:
        """Return logits or losses on the rank of the last stage, and None on other ranks.

        A rank is done once it has sent its activations on. So all ranks work at the same time while
        batches follow each other.
        """
        rank_of, here = self.stages.rank_of, self.layout.position["pp"]
        x_BLD = tokens_BL
        for stage, rank in enumerate(rank_of):
            before = rank_of[stage - 1] if stage else rank
            if rank == here:
                if before != here:
                    length = tokens_BL.shape[1] // self.tensor.parts(self.layout)
                    shape = (tokens_BL.shape[0], length, self.dim)
                    x_BLD = torch.empty(shape, dtype=self.dtype, device=tokens_BL.device)
                    dist.recv(x_BLD, group=self.group, group_src=before)
                x_BLD = self.stages.parts[stage](x_BLD, caches, **named)
            elif before == here:
                dist.send(x_BLD.contiguous(), group=self.group, group_dst=rank)
        return x_BLD if self.stages.has_last else None

    @torch.no_grad()
    def _logits(
        self,
        tokens_BL: torch.Tensor,
        caches: list[LayerCache] | None = None,
        **places: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits on every rank."""
        logits_BLV = self._forward(tokens_BL, caches, **places)
        if logits_BLV is None:
            shape = (*tokens_BL.shape, self.vocab_size)
            logits_BLV = torch.empty(shape, dtype=self.dtype, device=tokens_BL.device)
        logits_BLV = logits_BLV.contiguous()
        dist.broadcast(logits_BLV, group=self.group, group_src=self.stages.rank_of[-1])
        return logits_BLV


def _stage(
    within: Callable[..., Any],
    learned_shapes: Callable[[nn.Module], None],
    *arguments: Any,
    **named: Any,
) -> Any:
    """Return PyTorch's stage, changed to sum gradients over ranks only if `reduces` is True.

    PyTorch sums them after every run of a schedule. Here a step may have several runs.

    Args:
        within: Function that calls a function in a phase.
        learned_shapes: Function that is called after the pass in which PyTorch learns shapes.
        arguments: Positional arguments of PyTorch's stage.
        named: Keyword arguments of PyTorch's stage.
    """
    from torch.distributed.pipelining import PipelineStage

    class Stage(PipelineStage):
        reduces = True

        def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
            return within("forward", super().forward_one_chunk, *args, **kwargs)

        def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
            return within("backward", super().backward_one_chunk, *args, **kwargs)

        def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
            return within("backward", super().backward_weight_one_chunk, *args, **kwargs)

        def perform_reduce_grad(self, grad_scale_factor: int) -> None:
            if self.reduces:
                super().perform_reduce_grad(grad_scale_factor)

        def _post_metadata_inference_cleanup(self) -> None:
            super()._post_metadata_inference_cleanup()
            learned_shapes(self.submod)

    return Stage(*arguments, **named)

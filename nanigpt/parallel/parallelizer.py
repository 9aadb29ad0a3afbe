"""Distribution of a model over the processes of the run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from nanigpt.models.init import uninitialized
from nanigpt.models.linear import Linear
from nanigpt.models.protocol import compute_dtype
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.dropout import place_dropout
from nanigpt.parallel.expert import ExpertParallel
from nanigpt.parallel.expert_load import most_experts
from nanigpt.parallel.fsdp import FullyShardedDataParallel
from nanigpt.parallel.mesh import MESH_AXES, Layout, Mesh
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.pipeline import PipelineParallel
from nanigpt.parallel.pipelined_model import PipelinedModel
from nanigpt.parallel.plan import Plan, Policy, Reporting
from nanigpt.parallel.remat import Recomputation
from nanigpt.parallel.shared_weights import shared_weight_problems
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import Float8
from nanigpt.problems import Fix, Problem, refuse, reported


class Parallelizer:
    """All kinds of parallelism of the run: the number of ranks of each, and its policy.

    A parallelizer works with every model, since modules describe themselves (`tensor_parallel`,
    `shard_groups`, `part`).

    Args:
        mesh: Number of ranks of each kind of parallelism.
        pipeline: Policy of pipeline parallelism.
        fsdp: Policy of fully sharded data parallelism.
        context: Policy of context parallelism.
        tensor: Policy of tensor parallelism.
        expert: Policy of expert parallelism.
        float8: Computation of layers that have a float8 recipe. None means `Float8()`.
        recomputation: Policy for layers whose `activation_checkpointing` asks for recomputation.
            None means `Recomputation()`.
        compile: Policy that compiles the model, or None to run it in eager mode.
        extra: Further policies. They are applied in this order, after tensor, expert and context
            parallelism and before recomputation, compilation, float8 and FSDP.
    """

    def __init__(
        self,
        *,
        mesh: Mesh,
        pipeline: PipelineParallel,
        fsdp: FullyShardedDataParallel,
        context: ContextParallel,
        tensor: TensorParallel,
        expert: ExpertParallel,
        float8: Float8 | None = None,
        recomputation: Recomputation | None = None,
        compile: Compile | None = None,
        extra: Sequence[Policy] = (),
    ):
        if tensor.asynchronous and (compile is None or compile.backend != "inductor"):
            refuse(
                "tensor.asynchronous",
                True,
                "compile with backend='inductor', which fuses products and communication",
                Fix(None, "compile", Compile),
            )
        self.mesh = mesh
        self.pipeline = pipeline
        self.fsdp = fsdp
        self.context = context
        self.tensor = tensor
        self.expert = expert
        self.float8 = float8 or Float8()
        self.recomputation = recomputation or Recomputation()
        self.compile = compile
        self.extra = extra

    def plan(
        self,
        ranks: int,
        *,
        local_batch: int,
        sequence_length: int | None = None,
        mask_documents: bool = False,
        data: object | None = None,
        trainer: object | None = None,
    ) -> Plan:
        """Return the plan of a run on `ranks` ranks. `Plan` explains the other arguments.

        Raises:
            ComponentError: The mesh cannot have this number of ranks.
        """
        return Plan(
            self.mesh.sizes(ranks),
            local_batch=local_batch,
            sequence_length=sequence_length,
            mask_documents=mask_documents,
            compiled=self.compile is not None,
            splits_backward=self.pipeline.splits_backward,
            mesh=self.mesh,
            data=data,
            trainer=trainer,
        )

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return all reasons why `model` cannot run by this plan."""
        found = uninitialized(model)
        found += _problems_of_torch(plan, torch.__version__)
        for policy in self._policies():
            for problem in reported(policy, policy.problems(model, plan)):
                found.append(_about(policy, problem, plan))
        found += _unsplit_modules(model, plan)
        found += shared_weight_problems(model, plan)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            expected = "a parameter to train: every parameter of the model is frozen"
            found.append(Problem("", ..., expected, component=model))
        found += self._problems_of_pairs(plan)
        return found

    def _policies(self) -> list[Reporting]:
        policies: list[Reporting] = [self.tensor, self.expert, self.context, *self.extra]
        policies.append(self.recomputation)
        if self.compile is not None:
            policies.append(self.compile)
        return [*policies, self.fsdp, self.pipeline]

    def _problems_of_pairs(self, plan: Plan) -> list[Problem]:
        """Return the problems of two policies that cannot be combined."""
        split = plan.sizes["pp"] > 1 and plan.copies > 1 and plan.splits_backward
        if not split or self.fsdp.reshard_after_forward != "always":
            return []
        expected = (
            f"'default' with pipeline.schedule={self.pipeline.schedule!r}, which computes "
            "gradients of weights later and would lose them"
        )
        fix = Fix(self.fsdp, "reshard_after_forward", "default")
        return [Problem("reshard_after_forward", "always", expected, fix, self.fsdp)]

    def parallelize(self, model: nn.Module, layout: Layout, *, local_batch: int) -> ParallelModel:
        """Split and shard `model`, still on meta. Modules that stay here change in place."""
        policies: dict[str, Any] = {"tensor": self.tensor, "context": self.context}
        policies["n_experts"] = most_experts(model)
        if layout.sizes["pp"] == 1:
            policies["float8"] = self._split(model, layout)
            self.fsdp.apply(model, layout)
            return ParallelModel(model, layout, **policies)
        decoder: Any = model  # `problems` refuses a model without `part`
        stages = self.pipeline.stages(decoder, layout, local_batch=local_batch)
        policies["float8"] = self._split(stages.model, layout)
        for part in stages.parts.values():
            self.fsdp.apply(part, layout)
        stages.tie()
        return PipelinedModel(
            stages,
            layout,
            **policies,
            dim=decoder.dim,
            vocab_size=decoder.vocab_size,
            dtype=compute_dtype(model),
            keeps_buffers=self.compile is not None and self._splits_backward(layout),
        )

    def _split(self, model: nn.Module, layout: Layout) -> list[Linear]:
        """Apply every policy that comes before FSDP to this rank's part of the model.

        Returns:
            The layers whose weights FSDP gathers in float8.
        """
        self.tensor.apply(model, layout)
        self.expert.apply(model, layout)
        self.context.apply(model, layout)
        place_dropout(model, layout, splits_sequence=self.tensor.sequence_parallel)
        for policy in self.extra:
            policy.apply(model, layout)
        compile = None
        if self.compile is not None:
            compile = partial(self.compile.apply, budget=self.recomputation.budget)
        self.recomputation.apply(model, compile, lasting=self._splits_backward(layout))
        sizes = layout.sizes
        return self.float8.apply(model, shards=sizes["dp_shard"] * sizes["cp"])

    def _splits_backward(self, layout: Layout) -> bool:
        return layout.sizes["pp"] > 1 and self.pipeline.splits_backward


def _about(policy: Reporting, problem: Problem, plan: Plan) -> Problem:
    """Return the problem with the component that it concerns, and the axes that cause it."""
    component = policy if problem.component is None else problem.component
    axes = [axis for axis in getattr(policy, "axes", ()) if plan.sizes[axis] > 1]
    given = () if plan.mesh is None else tuple((plan.mesh, axis) for axis in axes)
    return replace(problem, component=component, given=problem.given + given)


def _unsplit_modules(model: nn.Module, plan: Plan) -> list[Problem]:
    """Return a problem for each axis of more than one rank that a module does not support.

    A module declares such axes in `unsplit_axes`, a dict from names of axes to reasons.
    """
    return [
        Problem("", ..., f"{axis}=1, since {why}", Fix(plan.mesh, axis, 1), module)
        for module in model.modules()
        for axis, why in getattr(module, "unsplit_axes", {}).items()
        if plan.sizes[axis] > 1
    ]


def _problems_of_torch(plan: Plan, version: str) -> list[Problem]:
    """Return a problem for each axis that an older torch does not support.

    With torch 2.11, data parallelism computes the same as one process. Some of the other axes fail,
    and some compute different numbers. setup.cfg has the oldest supported version.
    """
    if TorchVersion(version) >= TorchVersion("2.13"):
        return []
    return [
        Problem(
            axis.name,
            plan.sizes[axis.name],
            f"torch 2.13 or newer, not {version}; upgrade torch",
            Fix(plan.mesh, axis.name, 1),
            plan.mesh,
        )
        for axis in MESH_AXES
        if axis.needs_new_torch and plan.sizes[axis.name] > 1
    ]

"""Spreads a model over the processes of the run."""

from functools import partial

import torch
from torch.torch_version import TorchVersion

from nanigpt.models.decoder import Decoder
from nanigpt.models.linear import Linear
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.expert import ExpertParallel
from nanigpt.parallel.expert_load import most_experts
from nanigpt.parallel.fsdp import FullyShardedDataParallel
from nanigpt.parallel.mesh import Layout, Mesh
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.pipeline import PipelineParallel
from nanigpt.parallel.pipelined_model import PipelinedModel
from nanigpt.parallel.remat import Recomputation
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import Float8


class Parallelizer:
    """Every kind of parallelism of the run: how many ranks each has, and how it is done.

    One serves every decoder: modules describe themselves (`tensor_parallel`, `shard_groups`,
    `part`).

    Args:
        float8: how layers that have a float8 recipe compute it; None is `Float8()`.
        recomputation: what layers recompute whose `activation_checkpointing` asks for it; None is
            `Recomputation()`.
        compile: how the model is compiled, or None to run it as it is.
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
    ):
        if tensor.asynchronous and (compile is None or compile.backend != "inductor"):
            raise ValueError(
                "tensor.asynchronous=True: expected compile with backend='inductor', which fuses "
                "products and communication; add --config='set:parallelizer.compile=@compile()'"
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

    def problems(
        self,
        model: Decoder,
        ranks: int,
        *,
        sequence_length: int,
        mask_documents: bool,
        local_batch: int,
    ) -> list[str]:
        """Everything for which `model` cannot run on so many ranks.

        Raises:
            UsageError: the mesh itself cannot have so many ranks.
        """
        sizes = self.mesh.sizes(ranks)
        found = _problems_of_torch(sizes, torch.__version__)
        cp, tp = sizes["cp"], sizes["tp"]
        copies = sizes["dp_replicate"] * sizes["dp_shard"] * cp
        # Where sequences are split twice, the second split is the context's to tell.
        found += self.tensor.problems(model, tp, sequence_length=sequence_length if cp == 1 else 0)
        found += self.expert.problems(model, sizes["ep"], tp=tp)
        if model.multi_token is not None:
            for axis, why in (("cp", "tokens ahead are"), ("pp", "the embedding is")):
                if sizes[axis] > 1:
                    found.append(
                        f"model.multi_token predicts further tokens, but with mesh.{axis}="
                        f"{sizes[axis]} {why} on other ranks; set mesh.{axis}=1, or "
                        "model.multi_token=None"
                    )
        found += self.context.problems(
            model, cp, tp=tp, sequence_length=sequence_length, mask_documents=mask_documents
        )
        found += self.recomputation.problems(model, compiled=self.compile is not None)
        if self.compile is not None:
            found += self.compile.problems(
                model, sharded=copies > 1, pipelined=sizes["pp"] > 1, split=tp * sizes["ep"] > 1
            )
        if cp > 1 and self.context.method == "ring" and self.compile is not None:
            found.append("context.method='ring' cannot be compiled; set parallelizer.compile=None")
        if (
            sizes["pp"] > 1
            and copies > 1
            and self.pipeline.splits_backward
            and self.fsdp.reshard_after_forward == "always"
        ):
            found.append(
                f"fsdp.reshard_after_forward='always' would lose gradients of weights that "
                f"pipeline.schedule={self.pipeline.schedule!r} computes later; take 'default'"
            )
        found += self.pipeline.problems(model, sizes["pp"], copies=copies, local_batch=local_batch)
        return found

    def parallelize(self, model: Decoder, layout: Layout, *, local_batch: int) -> ParallelModel:
        """Splits and shards `model`, still on meta; modules that stay here change in place."""
        policies = {"tensor": self.tensor, "context": self.context}
        policies["n_experts"] = most_experts(model)
        if layout.sizes["pp"] == 1:
            policies["float8"] = self._split(model, layout)
            self.fsdp.apply(model, layout)
            return ParallelModel(model, layout, **policies)
        stages = self.pipeline.stages(model, layout, local_batch=local_batch)
        policies["float8"] = self._split(stages.model, layout)
        for part in stages.parts.values():
            self.fsdp.apply(part, layout)
        stages.tie()
        return PipelinedModel(
            stages,
            layout,
            **policies,
            dim=model.embedding.dim,
            vocab_size=model.vocab_size,
            dtype=model.embedding.compute_dtype,
            keeps_buffers=self.compile is not None and self._splits_backward(layout),
        )

    def _split(self, model: Decoder, layout: Layout) -> list[Linear]:
        """All that comes before shards are made, of what it leaves to a rank; returns what is to
        be gathered in float8."""
        self.tensor.apply(model, layout)
        self.expert.apply(model, layout)
        self.context.apply(model, layout)
        compile = None
        if self.compile is not None:
            compile = partial(self.compile.apply, budget=self.recomputation.budget)
        self.recomputation.apply(model, compile, lasting=self._splits_backward(layout))
        sizes = layout.sizes
        return self.float8.apply(model, shards=sizes["dp_shard"] * sizes["cp"])

    def _splits_backward(self, layout: Layout) -> bool:
        return layout.sizes["pp"] > 1 and self.pipeline.splits_backward


def _problems_of_torch(sizes: dict[str, int], version: str) -> list[str]:
    """What an older torch cannot do.

    With 2.11 (setup.cfg has the oldest) data parallelism gives what one process does; of the other
    axes some fail, and some give other numbers.
    """
    if TorchVersion(version) >= (2, 13):
        return []
    return [
        f"mesh.{axis}={sizes[axis]}: expected torch 2.13 or newer, this is {version}; upgrade it, "
        f"or set mesh.{axis}=1"
        for axis in ("pp", "cp", "tp", "ep")
        if sizes[axis] > 1
    ]

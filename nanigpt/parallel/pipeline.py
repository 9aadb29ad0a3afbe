"""Pipeline parallelism: the layers of each rank, and the order of their computation."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import nn

from nanigpt import tags
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import TiedHead
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.plan import Plan
from nanigpt.parallel.schedule import SCHEDULES, Timeline, Timetable, arrange, simulate
from nanigpt.problems import (
    ComponentError,
    Fix,
    Problem,
    refuse,
    require_choice,
    require_not_negative,
)


class PipelineParallel:
    """A policy that divides the layers into stages over the mesh axis `pp`.

    Args:
        schedule: Order of forward and backward passes: GPipe (Huang et al., 2019), 1F1B and
            Interleaved1F1B (Narayanan et al., 2021), LoopedBFS (Lamy-Poirier, 2023),
            InterleavedZeroBubble and ZBVZeroBubble (Qi et al., 2023 and 2024), DualPipeV
            (DeepSeek-AI, 2024), or CSV.
        microbatches: Number of parts in which a rank's local batch passes through the stages. None
            means one part for each sequence.
        stages_per_rank: Number of stages of each rank. None means 2 for schedules that interleave
            stages, and 1 for the others.
        layers_per_stage: Number of blocks of each stage. None divides the blocks so that the
            longest stage is as short as possible, by the FLOPs of the blocks and of the head.
        embedding_blocks: Number of blocks that the embedding counts as when blocks are divided. It
            computes almost nothing, but the first rank keeps the most activations (The Llama 3
            Herd of Models, 2024, 3.3.2, removes one block from that rank).
        csv: With schedule `CSV`, the path of the file that has the order. It has a row for each
            rank. A cell such as `0F2` is the forward pass of stage 0 on microbatch 2. B is a
            backward pass; I and W are its parts, the gradients of inputs and of weights.
    """

    axes = ("pp",)
    may_change_on_resume = True

    def __init__(
        self,
        *,
        schedule: Annotated[str, tags.PipelineSchedule] = "1F1B",
        microbatches: int | None = None,
        stages_per_rank: int | None = None,
        layers_per_stage: list[int] | None = None,
        embedding_blocks: float = 1.0,
        csv: str | None = None,
    ):
        require_choice((*SCHEDULES, "CSV"), schedule=schedule)
        if microbatches is not None and microbatches < 1:
            refuse("microbatches", microbatches, "at least 1, or None")
        require_not_negative(embedding_blocks=embedding_blocks)
        self.schedule = schedule
        self.microbatches = microbatches
        self.stages_per_rank = stages_per_rank
        self.layers_per_stage = layers_per_stage
        self.embedding_blocks = embedding_blocks
        self.csv = csv

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why the ranks of `pp` cannot be a pipeline for `model`."""
        ranks, local_batch = plan.sizes["pp"], plan.local_batch
        if ranks == 1:
            return []
        if not hasattr(model, "part"):
            expected = f"a method `part` of {type(model).__name__}, which gives a stage's modules"
            return [Problem("pp", ranks, expected, Fix(plan.mesh, "pp", 1), plan.mesh)]
        decoder: Any = model
        found, layers = [], len(decoder.layers)
        if self.microbatches and local_batch % self.microbatches:
            expected = f"a divisor of the local batch of {local_batch} samples"
            found.append(Problem("microbatches", self.microbatches, expected))
        try:
            placement = self.timetable(ranks, local_batch).placement
        except ComponentError as error:
            return [*found, *(self._as_set(problem) for problem in error.problems)]
        stages = sum(map(len, placement))
        if stages > layers:
            expected = f"at most {layers} stages, one for each layer, not {stages} (pp={ranks} x "
            expected += f"{stages // ranks} per rank)"
            found.append(Problem("", ..., expected, Fix(plan.mesh, "pp", 1)))
        sizes = self.layers_per_stage
        if sizes is not None and (
            len(sizes) != stages or sum(sizes) != layers or min(sizes, default=0) < 1
        ):
            expected = f"{stages} positive numbers that add up to {layers}"
            found.append(Problem("layers_per_stage", sizes, expected))
        elif self.splits_backward and stages <= layers:
            found += self._problems_of_frozen(decoder, stages)
        both_ends = {0, stages - 1} <= set(placement[0])
        if isinstance(decoder.head, TiedHead) and both_ends and plan.copies > 1:
            expected = (
                "a schedule with the first and the last stage on different ranks, or a head with "
                "its own weight, because a tied embedding cannot be sharded for both stages"
            )
            found.append(Problem("schedule", self.schedule, expected))
        return found

    def _as_set(self, problem: Problem) -> Problem:
        """Return a timetable's problem with the number of microbatches that the config has."""
        if problem.argument != "microbatches" or self.microbatches is not None:
            return problem
        expected = f"{problem.expected}; None takes the {problem.value} samples of a local batch"
        return replace(problem, value=None, expected=expected, fix="another local_batch_size")

    def _problems_of_frozen(self, decoder: Any, stages: int) -> list[Problem]:
        """Return why gradients of weights and of inputs cannot be computed separately.

        If the input of a stage needs no gradient, the backward pass has no gradient to begin with,
        and PyTorch finds no weights.
        """
        first = [decoder.embedding, *(decoder.layers[i] for i in self.split(decoder, stages)[0])]
        if any(p.requires_grad for module in first for p in module.parameters()):
            return []
        expected = "one that computes gradients of inputs and weights at once: stage 0 is frozen"
        return [Problem("schedule", self.schedule, expected, Fix(None, "schedule", "1F1B"))]

    @property
    def splits_backward(self) -> bool:
        """Return whether gradients of weights and of inputs are computed separately."""
        return self.schedule in ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV", "CSV")

    def timetable(self, ranks: int, local_batch: int) -> Timetable:
        """Return the stages of each rank, and the order in which it computes them.

        Raises:
            ComponentError: The schedule does not support these ranks, stages or microbatches.
        """
        return arrange(
            schedule=self.schedule,
            ranks=ranks,
            microbatches=self.microbatches or local_batch,
            stages_per_rank=self.stages_per_rank,
            csv=self.csv,
        )

    def timeline(self, model: Decoder, ranks: int, local_batch: int) -> Timeline:
        """Return the schedule with times, in units of a rank's mean forward pass of a microbatch.

        Raises:
            ComponentError: The schedule does not support these ranks, stages or microbatches.
        """
        timetable = self.timetable(ranks, local_batch)
        blocks = model.block_flops(model.max_sequence_length or 1)
        costs = [
            sum(blocks[i] for i in layers)
            for layers in self.split(model, ranks * timetable.stages_per_rank)
        ]
        costs[-1] += model.head_flops()
        timeline = simulate(timetable, stage_costs=[cost * ranks / sum(costs) for cost in costs])
        return replace(timeline, unit="a rank's mean forward pass of a microbatch, by FLOPs")

    def split(self, model: Decoder, n_stages: int) -> list[range]:
        """Return the numbers of the blocks of each stage."""
        sizes = self.layers_per_stage
        if sizes is None:
            costs = [float(c) for c in model.block_flops(model.max_sequence_length or 1)]
            embedding = self.embedding_blocks * sum(costs) / len(costs)
            sizes = balanced(costs, n_stages, first=embedding, last=model.head_flops())
        ends = [sum(sizes[: i + 1]) for i in range(n_stages)]
        return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def stages(self, model: Decoder, layout: Layout, *, local_batch: int) -> "Stages":
        """Return this rank's stages, which share their modules with the model."""
        timetable = self.timetable(layout.sizes["pp"], local_batch)
        rank_of = {stage: r for r, stages in enumerate(timetable.placement) for stage in stages}
        last = len(rank_of) - 1
        split = self.split(model, last + 1)
        mine = timetable.placement[layout.position["pp"]]
        tied = isinstance(model.head, TiedHead)
        return Stages(
            # The last stage has a tied weight too, under the name from the whole model.
            model=model.part(
                [i for stage in mine for i in split[stage]],
                embedding=0 in mine or (tied and last in mine),
            ),
            parts={stage: model.part(split[stage]) for stage in mine},
            rank_of=[rank_of[stage] for stage in range(last + 1)],
            timetable=timetable,
            csv=self.csv,
            tied=tied,
        )


@dataclass(frozen=True)
class Stages:
    """A rank's stages of a decoder.

    Attributes:
        model: All modules of this rank, under the names of the whole decoder.
        parts: The same modules, stage by stage.
        rank_of: Rank along `pp` of every stage.
        timetable: The order of the work of all ranks.
        csv: Path of the file that the timetable comes from, or None.
        tied: Whether the head has the embedding's weight.
    """

    model: Decoder
    parts: dict[int, Decoder]
    rank_of: list[int]
    timetable: Timetable
    csv: str | None
    tied: bool

    @property
    def has_first(self) -> bool:
        return 0 in self.parts

    @property
    def has_last(self) -> bool:
        return len(self.rank_of) - 1 in self.parts

    @property
    def has_copy(self) -> bool:
        """Return whether the head's weight is a copy of the weight of another rank's embedding."""
        return self.tied and self.has_last and not self.has_first

    def tie(self) -> None:
        """Give the head's weight, after it was split and sharded, the embedding's name."""
        if self.has_copy:
            self.model.embedding._parameters["weight"] = self.model.head._parameters["weight"]


def balanced(costs: Sequence[float], n: int, *, first: float = 0.0, last: float = 0.0) -> list[int]:
    """Return the sizes of n contiguous, non-empty groups with the smallest possible largest cost.

    If there are several such divisions, take the most even one: the smallest sum of squared costs.

    Args:
        costs: Cost of each item.
        n: Number of groups.
        first: Additional cost of the first group.
        last: Additional cost of the last group.
    """
    largest = _divide(costs, n, first, last, max)[0]
    bounded = _divide(costs, n, first, last, lambda a, b: a + b * b if b <= largest else math.inf)
    return bounded[1]


def _divide(
    costs: Sequence[float], n: int, first: float, last: float, join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """Return the cheapest division into n groups. `join` adds a group's cost to earlier costs."""
    before = [0.0, *itertools.accumulate(costs)]
    total = len(costs)
    # row[i] has, for i items in g groups, the least cost and the begin of the last group.
    row = [(0.0, 0)] + [(math.inf, 0)] * total
    begins = []
    for g in range(1, n + 1):
        extra = (first if g == 1 else 0.0) + (last if g == n else 0.0)
        following = [(math.inf, 0)] * (total + 1)
        for i in range(g, total + 1):
            following[i] = min(
                (join(row[j][0], before[i] - before[j] + extra), j) for j in range(g - 1, i)
            )
        row = following
        begins.append([begin for _, begin in row])
    sizes, end = [], total
    for begin in reversed(begins):
        sizes.append(end - begin[end])
        end = begin[end]
    return row[total][0], sizes[::-1]

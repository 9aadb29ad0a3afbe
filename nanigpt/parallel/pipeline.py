"""Pipeline parallelism: which rank has which layers, and when it computes them."""

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
from nanigpt.problems import ComponentError, Fix, Problem, refuse


class PipelineParallel:
    """Divides the layers into stages over the mesh axis `pp`.

    Args:
        schedule: the order of forward and backward passes: GPipe (Huang et al., 2019), 1F1B and
            Interleaved1F1B (Narayanan et al., 2021), LoopedBFS (Lamy-Poirier, 2023),
            InterleavedZeroBubble and ZBVZeroBubble (Qi et al., 2023 and 2024), DualPipeV
            (DeepSeek-AI, 2024), or CSV.
        microbatches: parts that a rank's local batch passes through the stages in; None is one for
            each sequence.
        stages_per_rank: None is what the schedule wants: 1, or 2 for those that interleave.
        layers_per_stage: blocks of each stage; None divides them so that the longest stage is as
            short as can be, by their FLOPs and the head's.
        embedding_blocks: how many blocks the embedding counts as when they are divided. It computes
            next to nothing, but the first rank keeps the most activations (The Llama 3 Herd of
            Models, 2024, 3.3.2, takes one block off it).
        csv: with schedule `CSV`, the file that has the order: a row per rank, of cells as `0F2` for
            stage 0's forward pass of microbatch 2 (B backward, I and W of inputs and weights).
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
        if schedule not in (*SCHEDULES, "CSV"):
            expected = ", ".join((*SCHEDULES, "CSV"))
            refuse("schedule", schedule, f"one of {expected}")
        if microbatches is not None and microbatches < 1:
            refuse("microbatches", microbatches, "at least 1, or None")
        if embedding_blocks < 0:
            refuse("embedding_blocks", embedding_blocks, "0 or more")
        self.schedule = schedule
        self.microbatches = microbatches
        self.stages_per_rank = stages_per_rank
        self.layers_per_stage = layers_per_stage
        self.embedding_blocks = embedding_blocks
        self.csv = csv

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return why the ranks of `pp` cannot be a pipeline for `model`."""
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
        except ValueError as error:
            if isinstance(error, ComponentError):
                return [*found, *error.problems]
            return [*found, Problem("schedule", self.schedule, f"one that can be: {error}")]
        stages = sum(map(len, placement))
        if stages > layers:
            expected = f"at most {layers} stages, one a layer, not {stages} (pp={ranks} x "
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
                "one that has the first and the last stage on different ranks, or a head of its "
                "own: a tied embedding cannot be sharded for both stages"
            )
            found.append(Problem("schedule", self.schedule, expected))
        return found

    def _problems_of_frozen(self, decoder: Any, stages: int) -> list[Problem]:
        """Return why gradients of weights cannot be computed apart from those of inputs.

        A stage whose input needs no gradient has none to begin with, and upstream finds no weights.
        """
        first = [decoder.embedding, *(decoder.layers[i] for i in self.split(decoder, stages)[0])]
        if any(p.requires_grad for module in first for p in module.parameters()):
            return []
        expected = "one that computes gradients of inputs and weights together: stage 0 is frozen"
        return [Problem("schedule", self.schedule, expected, Fix(None, "schedule", "1F1B"))]

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are computed apart from those of inputs."""
        return self.schedule in ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV", "CSV")

    def timetable(self, ranks: int, local_batch: int) -> Timetable:
        """Which stages each rank has, and in which order it computes them.

        Raises:
            ValueError: the schedule cannot have so many ranks, stages or microbatches.
        """
        return arrange(
            schedule=self.schedule,
            ranks=ranks,
            microbatches=self.microbatches or local_batch,
            stages_per_rank=self.stages_per_rank,
            csv=self.csv,
        )

    def timeline(self, model: Decoder, ranks: int, local_batch: int) -> Timeline:
        """Return the schedule in time, in units of a rank's mean forward pass of a microbatch.

        Raises:
            ValueError: the schedule cannot have so many ranks, stages or microbatches.
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
        """Blocks of each stage."""
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
            # The last stage has a tied weight too, under the name that it has in the whole model.
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
    """What a rank has of a decoder.

    Attributes:
        model: all modules of this rank, under the names of the whole decoder.
        parts: the same modules, stage by stage.
        rank_of: rank along `pp` of every stage.
        csv: the file that the plan comes from, if it does.
        tied: the head has the embedding's weight.
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
        """Whether the head's weight is a copy of that of another rank's embedding."""
        return self.tied and self.has_last and not self.has_first

    def tie(self) -> None:
        """Give the head's weight, after it was split and sharded, the embedding's name."""
        if self.has_copy:
            self.model.embedding._parameters["weight"] = self.model.head._parameters["weight"]


def balanced(costs: Sequence[float], n: int, *, first: float = 0.0, last: float = 0.0) -> list[int]:
    """Sizes of n contiguous groups, none empty, whose largest cost is as small as can be.

    Among such divisions the most even one is taken, by the squares of the costs.

    Args:
        first: cost that the first group has besides.
        last: cost that the last group has besides.
    """
    largest = _divide(costs, n, first, last, max)[0]
    bounded = _divide(costs, n, first, last, lambda a, b: a + b * b if b <= largest else math.inf)
    return bounded[1]


def _divide(
    costs: Sequence[float], n: int, first: float, last: float, join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """Return the division into n groups of least cost; `join` adds a group to earlier ones."""
    before = [0.0, *itertools.accumulate(costs)]
    total = len(costs)
    # For i items in g groups: the least cost, and where the last group begins.
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

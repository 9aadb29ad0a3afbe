"""Compute pipeline schedules before a run: each rank's stages, and the order and times of its work.

The orders are those that `torch.distributed.pipelining` executes, or come from a file. Nothing here
needs a process group.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import count
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from nanigpt.parallel.schedule_csv import read_csv
from nanigpt.problems import ComponentError, Fix, refuse
from nanigpt.words import one_of

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _Action as Action

SCHEDULES = (
    "GPipe",
    "1F1B",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
)
_ONE_STAGE = ("GPipe", "1F1B")
_V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
_IN_ROUNDS = ("Interleaved1F1B", "InterleavedZeroBubble")

Kind = Literal["F", "B", "I", "W"]

# For each product of the forward pass, the backward pass computes two: the gradients of inputs and
# of weights (Narayanan et al., 2021, 2.2). Qi et al., 2023, split it into these halves.
_TIMES: dict[Kind, int] = {"F": 1, "B": 2, "I": 1, "W": 1}

_UNIT = "a forward pass of one microbatch through a rank's stages"
_UNIT_OF_COSTS = "the unit of the stage costs"


@dataclass(frozen=True)
class Timetable:
    """The work of each rank, in order.

    Attributes:
        schedule: One of `SCHEDULES`, or `CSV`.
        ranks: Number of ranks.
        stages_per_rank: Number of stages of each rank.
        microbatches: Number of microbatches.
        placement: The stages of each rank, ascending.
        orders: The actions of each rank, as PyTorch's `_Action`s without waits.
    """

    schedule: str
    ranks: int
    stages_per_rank: int
    microbatches: int
    placement: list[list[int]]
    orders: "list[list[Action]]"


@dataclass(frozen=True)
class Slot:
    """A stage's work on a microbatch.

    Actions that run at once have slots of the same time.

    Attributes:
        rank, stage, microbatch: Numbers from 0.
        kind: `F` for forward, `B` for full backward. `I` and `W` are parts of `B`: the gradients of
            inputs and of weights.
        start, end: Times in the unit of the timeline.
    """

    rank: int
    stage: int
    microbatch: int
    kind: Kind
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A timetable with the time of each action.

    Attributes:
        timetable: The work of each rank, in order.
        slots: All work, sorted by rank and start.
        length: Time from the first start to the last end.
        unit: Unit of the times, in words.
    """

    timetable: Timetable
    slots: list[Slot]
    length: float
    unit: str

    @property
    def idle(self) -> list[float]:
        """Return the idle fraction of each rank's time."""
        spans = {(slot.rank, slot.start, slot.end) for slot in self.slots}
        busy = [0.0] * self.timetable.ranks
        for rank, start, end in sorted(spans):
            busy[rank] += end - start
        return [1 - each / self.length for each in busy]

    @property
    def bubble(self) -> float:
        """Return the idle fraction of the time of all ranks together."""
        return sum(self.idle) / self.timetable.ranks


def default_stages_per_rank(schedule: str) -> int:
    """Return the smallest number of stages per rank that the schedule supports."""
    _check_name(schedule)
    return 1 if schedule in _ONE_STAGE else 2


def stage_placement(schedule: str, ranks: int, stages_per_rank: int) -> list[list[int]]:
    """Return the stages of each rank, ascending.

    Rank r has the stages r, r + ranks, and so on. In the V-shaped schedules it has r and
    2 ranks - 1 - r, so that the first rank also has the last stage.
    """
    _check_stages(schedule, ranks, stages_per_rank)
    from torch.distributed.pipelining._utils import generate_rank_to_stage_mapping

    style = "v" if schedule in _V_SHAPED else "loop"
    stages = generate_rank_to_stage_mapping(ranks, ranks * stages_per_rank, style)
    return [stages[rank] for rank in range(ranks)]


def arrange(
    *,
    schedule: str,
    ranks: int,
    microbatches: int,
    stages_per_rank: int | None = None,
    csv: str | PathLike[str] | None = None,
) -> Timetable:
    """Arrange the work of all ranks.

    Args:
        schedule: One of `SCHEDULES`, or `CSV`.
        ranks: Number of ranks.
        microbatches: Number of microbatches.
        stages_per_rank: Number of stages of each rank. The default is
            `default_stages_per_rank(schedule)`, or the number in the file.
        csv: With schedule `CSV`, the path of a file in the format of
            `nanigpt.parallel.schedule_csv`.

    Raises:
        ComponentError: The schedule does not support these numbers, or the file is not a complete
            order that finishes.
    """
    if schedule == "CSV":
        if csv is None:
            refuse("csv", None, "the path of a file with schedule='CSV'")
        return _timetable_of_file(csv, ranks, microbatches, stages_per_rank)
    if csv is not None:
        refuse("schedule", schedule, f"'CSV' with csv={str(csv)!r}, or csv=None")
    if stages_per_rank is None:
        stages_per_rank = default_stages_per_rank(schedule)
    placement = stage_placement(schedule, ranks, stages_per_rank)
    _check_microbatches(schedule, ranks, microbatches)
    if schedule == "1F1B":
        orders = _orders_1f1b(ranks, microbatches)
    else:
        orders = _orders(schedule, ranks, microbatches, stages_per_rank)
    return Timetable(schedule, ranks, stages_per_rank, microbatches, placement, orders)


def simulate(timetable: Timetable, *, stage_costs: list[float] | None = None) -> Timeline:
    """Return the times of all work if each rank works as early as its order and inputs permit.

    A forward pass waits for the forward pass of the previous stage. A backward pass waits for the
    backward pass of the next stage. Gradients of weights wait for gradients of inputs. Actions that
    run at once start when all of them can start, and last for the sum of their times. Communication
    takes no time.

    Args:
        timetable: The work of each rank, in order.
        stage_costs: Time of a forward pass through each stage. A backward pass takes twice this
            time, and each of its parts takes it once. The default is 1 / stages_per_rank. The unit
            is then a forward pass of one microbatch through all stages of a rank, so that schedules
            can be compared.

    Raises:
        ComponentError: The costs are wrong, or ranks wait for each other forever.
    """
    costs = _check_costs(timetable, stage_costs)
    ended: dict[tuple[int, str, int], float] = {}
    clock, place = [0.0] * timetable.ranks, [0] * timetable.ranks
    slots: list[Slot] = []
    going = True
    while going:
        going = False
        for rank, order in enumerate(timetable.orders):
            while place[rank] < len(order):
                parts = _parts(order[place[rank]])
                needs = [need for part in parts for need in _needs(part, len(costs))]
                if not all(need in ended for need in needs):
                    break
                start = max([clock[rank], *(ended[need] for need in needs)])
                end = start + sum(costs[stage] * _TIMES[kind] for stage, kind, _ in parts)
                for stage, kind, microbatch in parts:
                    slots.append(Slot(rank, stage, microbatch, kind, start, end))
                    ended[stage, _result(kind), microbatch] = end
                clock[rank] = end
                place[rank] += 1
                going = True
    _check_finished(timetable, place, ended)
    slots.sort(key=lambda slot: (slot.rank, slot.start))
    unit = _UNIT if stage_costs is None else _UNIT_OF_COSTS
    return Timeline(timetable, slots, max(clock), unit)


def _parts(action: "Action") -> list[tuple[int, Kind, int]]:
    """Return stage, kind and microbatch of an action, or of each of its simultaneous actions."""
    parts: Any = action.sub_actions or (action,)
    return [(p.stage_index, p.computation_type.value, p.microbatch_index) for p in parts]


def _result(kind: Kind) -> str:
    """Return the result that others wait for. A full backward pass includes input gradients."""
    return "I" if kind == "B" else kind


def _needs(part: tuple[int, Kind, int], n_stages: int) -> list[tuple[int, str, int]]:
    """Return the results that a part of the work needs."""
    stage, kind, microbatch = part
    if kind == "W":
        return [(stage, "I", microbatch)]
    if kind == "F":
        return [(stage - 1, "F", microbatch)] if stage > 0 else []
    behind = [(stage + 1, "I", microbatch)] if stage + 1 < n_stages else []
    return [(stage, "F", microbatch), *behind]


def _orders(schedule: str, ranks: int, microbatches: int, stages: int) -> "list[list[Action]]":
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    orders = get_schedule_ops(schedule, ranks, microbatches, stages)
    return [[action for action in order if action and action.is_compute_op] for order in orders]


def _orders_1f1b(ranks: int, microbatches: int) -> "list[list[Action]]":
    """Return the order that `Schedule1F1B` executes.

    The order that PyTorch reports for it begins with microbatch 1 on the last rank (torch 2.13).
    """
    from torch.distributed.pipelining.schedules import _Action, _ComputationType

    def order(rank: int) -> "list[Action]":
        forward, backward = (
            [_Action(rank, kind, m) for m in range(microbatches)]
            for kind in (_ComputationType.FORWARD, _ComputationType.FULL_BACKWARD)
        )
        ahead = ranks - 1 - rank
        pairs = zip(forward[ahead:], backward, strict=False)
        steady = [action for pair in pairs for action in pair]
        return [*forward[:ahead], *steady, *backward[microbatches - ahead :]]

    return [order(rank) for rank in range(ranks)]


def _timetable_of_file(
    csv: str | PathLike[str], ranks: int, microbatches: int, stages_per_rank: int | None
) -> Timetable:
    _check_counts(ranks, microbatches)
    orders = read_csv(csv)
    if len(orders) != ranks:
        refuse(
            "csv",
            str(csv),
            f"{ranks} rows, one for each rank, not {len(orders)} (empty ones count)",
        )
    placement = _check_complete(csv, orders, microbatches)
    found = len(placement[0])
    if stages_per_rank not in (None, found):
        refuse("stages_per_rank", stages_per_rank, f"{found} as in the file, or None",
               Fix(None, "stages_per_rank", None))  # fmt: skip
    result = Timetable("CSV", ranks, found, microbatches, placement, orders)
    try:
        simulate(result)
    except ComponentError as error:
        refuse("csv", str(csv), error.problems[0].expected)
    return result


def _check_complete(
    csv: str | PathLike[str], orders: "list[list[Action]]", microbatches: int
) -> list[list[int]]:
    """Check that every stage works on every microbatch once, and return the placement."""
    homes: dict[int, int] = {}
    found: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for rank, order in enumerate(orders):
        for stage, kind, microbatch in (part for action in order for part in _parts(action)):
            if homes.setdefault(stage, rank) != rank:
                both = f"{homes[stage]} and {rank}"
                refuse("csv", str(csv), f"each stage on one rank, not stage {stage} on {both}")
            if microbatch >= microbatches:
                expected = f"microbatches 0 to {microbatches - 1}, not {stage}{kind}{microbatch}"
                refuse("csv", str(csv), expected)
            found[stage, microbatch][kind] += 1
    missing = next(stage for stage in count() if stage not in homes)
    if missing < max(homes, default=0) or not homes:
        refuse("csv", str(csv), f"a rank that has stage {missing}")
    placement = [sorted(s for s in homes if homes[s] == rank) for rank in range(len(orders))]
    for rank, stages in enumerate(placement):
        if len(stages) != len(placement[0]):
            expected = f"as many stages on each rank, not {placement[0]} on rank 0"
            refuse("csv", str(csv), f"{expected} and {stages} on rank {rank}")
    for stage in sorted(homes):
        for microbatch in range(microbatches):
            kinds = "".join(sorted(found[stage, microbatch].elements()))
            if kinds not in ("BF", "FIW"):
                expected = "F and either B or I and W, each once, for each stage and microbatch"
                told = f"{', '.join(kinds) or 'nothing'} for stage {stage}, microbatch {microbatch}"
                refuse("csv", str(csv), f"{expected}, not {told}")
    return placement


def _check_finished(
    timetable: Timetable, place: list[int], ended: dict[tuple[int, str, int], float]
) -> None:
    waits = []
    n_stages = sum(map(len, timetable.placement))
    for rank, order in enumerate(timetable.orders):
        if place[rank] < len(order):
            action = order[place[rank]]
            needs = [need for part in _parts(action) for need in _needs(part, n_stages)]
            stage, result, microbatch = next(need for need in needs if need not in ended)
            kinds: list[Kind] = [kind for kind in _TIMES if _result(kind) == result]
            names = [f"{stage}{kind}{microbatch}" for kind in kinds]
            waits.append(f"rank {rank} is at {action} and waits for {' or '.join(names)}")
    if waits:
        refuse("timetable", ..., f"an order that finishes: {'; '.join(waits)}")


def _check_costs(timetable: Timetable, costs: list[float] | None) -> list[float]:
    n_stages = sum(map(len, timetable.placement))
    if costs is None:
        return [1 / timetable.stages_per_rank] * n_stages
    if len(costs) != n_stages:
        refuse("stage_costs", costs, f"{n_stages} values, one per stage")
    for stage, cost in enumerate(costs):
        if not (cost > 0 and math.isfinite(cost)):
            refuse(f"stage_costs[{stage}]", cost, "a time above 0")
    return costs


def _check_name(schedule: str) -> None:
    if schedule not in SCHEDULES:
        refuse("schedule", schedule, one_of((*SCHEDULES, "CSV")))


def _check_counts(ranks: int, microbatches: int) -> None:
    if ranks < 2:
        refuse("ranks", ranks, "2 or more")
    if microbatches < 1:
        refuse("microbatches", microbatches, "1 or more")


def _check_stages(schedule: str, ranks: int, stages_per_rank: int) -> None:
    fewest = default_stages_per_rank(schedule)
    exactly = schedule in _ONE_STAGE + _V_SHAPED
    if stages_per_rank < fewest or (exactly and stages_per_rank > fewest):
        expected = f"exactly {fewest}" if exactly else f"at least {fewest}"
        fix = Fix(None, "stages_per_rank", fewest)
        refuse("stages_per_rank", stages_per_rank, f"{expected} for schedule={schedule!r}", fix)
    _check_counts(ranks, 1)


def _check_microbatches(schedule: str, ranks: int, microbatches: int) -> None:
    """Check the rules of PyTorch, which PyTorch itself checks only in a process group."""
    _check_counts(ranks, microbatches)
    fewest = {"1F1B": ranks, "DualPipeV": 2 * ranks}.get(schedule, 1)
    where = f"for schedule={schedule!r} on {ranks} ranks"
    if microbatches < fewest:
        refuse("microbatches", microbatches, f"at least {fewest}, as many as stages, {where}")
    rounds = max(1, microbatches // ranks)
    if schedule in _IN_ROUNDS and microbatches % rounds:
        expected = (
            f"a multiple of {rounds}, such as {microbatches - microbatches % rounds}, {where}, "
            f"which divides them into {rounds} equal rounds (microbatches // ranks)"
        )
        refuse("microbatches", microbatches, expected)

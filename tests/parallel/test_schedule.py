"""Pipeline plans and their timelines: complete orders, known bubbles, clear refusals."""

import csv
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from unittest import mock

import pytest

from nanigpt.parallel.schedule import (
    SCHEDULES,
    arrange,
    default_stages_per_rank,
    simulate,
    stage_placement,
)

SHAPES = [
    (schedule, ranks, microbatches, stages)
    for schedule in SCHEDULES
    for ranks in (2, 4, 8)
    for microbatches in (2 * ranks, 3 * ranks, 32)
    for stages in ((2, 3) if schedule in SCHEDULES[2:5] else (default_stages_per_rank(schedule),))
]
UNEVEN = [  # too few to fill the pipeline, or no multiple of the ranks
    ("GPipe", 4, 1, 1),
    ("1F1B", 4, 5, 1),
    ("Interleaved1F1B", 4, 3, 2),
    ("Interleaved1F1B", 4, 10, 2),
    ("LoopedBFS", 4, 3, 3),
    ("InterleavedZeroBubble", 4, 3, 2),
    ("InterleavedZeroBubble", 4, 10, 2),
    ("ZBVZeroBubble", 4, 2, 2),
    ("DualPipeV", 3, 7, 2),
]


def make(schedule, ranks, microbatches, stages=None):
    return arrange(
        schedule=schedule, ranks=ranks, microbatches=microbatches, stages_per_rank=stages
    )


def write(path, *rows):
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def dump(orders, path):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(orders)
    return path


@pytest.mark.parametrize("schedule, ranks, microbatches, stages", SHAPES + UNEVEN)
def test_every_action_once_and_never_too_early(schedule, ranks, microbatches, stages):
    timeline = simulate(make(schedule, ranks, microbatches, stages))
    placement = stage_placement(schedule, ranks, stages)
    assert sorted(chain(*placement)) == list(range(ranks * stages))
    done = {}
    for slot in timeline.slots:
        assert slot.stage in placement[slot.rank]
        key = slot.kind, slot.stage, slot.microbatch
        assert key not in done
        done[key] = slot
    for m in range(microbatches):
        earlier = 0.0
        for stage in range(ranks * stages):
            forward = done.pop(("F", stage, m))
            assert forward.start >= earlier
            earlier = forward.end
        # The last forward pass is the latest, so that each backward pass is after its own.
        for stage in reversed(range(ranks * stages)):
            backward = done.pop(("B", stage, m), None)
            if backward is None:
                backward, weights = done.pop(("I", stage, m)), done.pop(("W", stage, m))
                assert weights.start >= backward.end
            assert backward.start >= earlier
            earlier = backward.end
    assert not done
    for rank in range(ranks):
        spans = sorted({(s.start, s.end) for s in timeline.slots if s.rank == rank})
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("schedule, p, m, v", SHAPES)
def test_bubbles_have_their_closed_forms(schedule, p, m, v):
    timeline = simulate(make(schedule, p, m, v))
    expected = {
        # Narayanan et al., 2021, 2.2; LoopedBFS: Lamy-Poirier, 2023
        "GPipe": (p - 1) / (m + p - 1),
        "1F1B": (p - 1) / (m + p - 1),
        "Interleaved1F1B": (p - 1) / (v * m + p - 1),
        "LoopedBFS": (p - 1) / (v * m + p - 1),
        # 3 v m parts of work and p - 1 of waiting: (p - 1)(F + B - W) of ZB-H1 in Qi et al., 2023,
        # with F = B = W; in ZB-V ranks only start and end one after the other
        "InterleavedZeroBubble": (p - 1) / (3 * v * m + p - 1),
        "ZBVZeroBubble": (p - 1) / (6 * m + p - 1),
        # As found here, not from a paper: twice the waiting of ZB-V
        "DualPipeV": (p - 1) / (3 * m + p - 1),
    }[schedule]
    assert timeline.bubble == pytest.approx(expected)
    assert timeline.length == pytest.approx(3 * m / (1 - expected))


def test_placements():
    assert stage_placement("1F1B", 3, 1) == [[0], [1], [2]]
    assert stage_placement("Interleaved1F1B", 3, 2) == [[0, 3], [1, 4], [2, 5]]
    assert stage_placement("ZBVZeroBubble", 3, 2) == [[0, 5], [1, 4], [2, 3]]
    assert stage_placement("DualPipeV", 2, 2) == [[0, 3], [1, 2]]


def test_uneven_stages_by_hand():
    timeline = simulate(make("GPipe", 2, 1), stage_costs=[1.0, 3.0])
    times = {(s.stage, s.kind): (s.start, s.end) for s in timeline.slots}
    assert times == {(0, "F"): (0, 1), (1, "F"): (1, 4), (1, "B"): (4, 10), (0, "B"): (10, 12)}
    assert timeline.length == 12
    assert timeline.idle == [0.75, 0.25]
    assert timeline.bubble == 0.5


def test_actions_at_once_last_for_both():
    made = make("DualPipeV", 4, 8)
    pairs = [a for order in made.orders for a in order if a.sub_actions]
    blocks = Counter((s.rank, s.start, s.end) for s in simulate(made).slots)
    assert len(pairs) == list(blocks.values()).count(2) > 0
    assert {round(end - start, 9) for (_, start, end), n in blocks.items() if n == 2} == {1.5}


@pytest.mark.parametrize("name", ["GPipe", "1F1B"])
@pytest.mark.parametrize("microbatches", [4, 7])
def test_orders_are_what_pytorch_executes(name, microbatches):
    """Its classes of one stage per rank do not follow the order that they tell."""
    from torch.distributed.pipelining.schedules import get_schedule_class
    from torch.distributed.pipelining.stage import PipelineStage

    for rank, order in enumerate(make(name, 4, microbatches).orders):
        stage, done = mock.create_autospec(PipelineStage, instance=True), []
        stage.stage_index, stage.num_stages, stage.is_last = rank, 4, rank == 3
        stage.group_rank, stage.group_size, stage.has_backward = rank, 4, True
        for operations in ("get_fwd_recv_ops", "get_fwd_send_ops", "get_bwd_recv_ops"):
            getattr(stage, operations).return_value = []
        stage.get_bwd_send_ops.return_value = []
        for kind, call in (("F", "forward"), ("B", "backward")):
            getattr(stage, f"{call}_one_chunk").side_effect = (
                lambda i, *_, kind=kind, rank=rank, done=done, **__: done.append(f"{rank}{kind}{i}")
            )
        schedule = get_schedule_class(name)(stage, microbatches)
        schedule._initialize_stage = mock.Mock()  # needs a process group
        schedule._step_microbatches([()] * microbatches, [{}] * microbatches)
        assert [str(action) for action in order] == done


@pytest.mark.parametrize(
    "numbers, message",
    [
        (("1f1b", 4, 8, None), "schedule='1f1b': expected one of GPipe, 1F1B, Interleaved1F1B, LoopedBFS, InterleavedZeroBubble, ZBVZeroBubble, DualPipeV, CSV"),
        (("GPipe", 1, 8, None), "ranks=1: expected 2 or more"),
        (("GPipe", 4, 0, None), "microbatches=0: expected 1 or more"),
        (("GPipe", 4, 8, 2), "stages_per_rank=2: expected exactly 1 for schedule='GPipe'; try stages_per_rank=1"),
        (("1F1B", 4, 8, 0), "stages_per_rank=0: expected exactly 1 for schedule='1F1B'; try stages_per_rank=1"),
        (("Interleaved1F1B", 4, 8, 1), "stages_per_rank=1: expected at least 2 for schedule='Interleaved1F1B'; try stages_per_rank=2"),
        (("LoopedBFS", 4, 8, 1), "stages_per_rank=1: expected at least 2 for schedule='LoopedBFS'; try stages_per_rank=2"),
        (("InterleavedZeroBubble", 4, 8, 1), "stages_per_rank=1: expected at least 2 for schedule='InterleavedZeroBubble'; try stages_per_rank=2"),
        (("ZBVZeroBubble", 4, 8, 3), "stages_per_rank=3: expected exactly 2 for schedule='ZBVZeroBubble'; try stages_per_rank=2"),
        (("DualPipeV", 4, 8, 1), "stages_per_rank=1: expected exactly 2 for schedule='DualPipeV'; try stages_per_rank=2"),
        (("1F1B", 4, 3, None), "microbatches=3: expected at least 4, as many as stages, for schedule='1F1B' on 4 ranks"),
        (("DualPipeV", 4, 7, None), "microbatches=7: expected at least 8, as many as stages, for schedule='DualPipeV' on 4 ranks"),
        (("Interleaved1F1B", 4, 9, None), "microbatches=9: expected a multiple of 2, such as 8, for schedule='Interleaved1F1B' on 4 ranks, which divides them into 2 equal rounds (microbatches // ranks)"),
        (("InterleavedZeroBubble", 2, 7, None), "microbatches=7: expected a multiple of 3, such as 6, for schedule='InterleavedZeroBubble' on 2 ranks, which divides them into 3 equal rounds (microbatches // ranks)"),
    ],
)  # fmt: skip
def test_refusals(numbers, message):
    with pytest.raises(ValueError) as raised:
        make(*numbers)
    assert str(raised.value) == message


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_refuses_exactly_the_microbatches_that_pytorch_does(schedule, ranks):
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    def refused(function, microbatches):
        try:
            function(microbatches)
        except ValueError:
            return True
        return False

    for microbatches in range(1, 3 * ranks + 2):
        ours = refused(lambda m: make(schedule, ranks, m), microbatches)
        theirs = refused(lambda m: get_schedule_ops(schedule, ranks, m), microbatches)
        assert ours == theirs, microbatches


@pytest.mark.parametrize(
    "costs, message",
    [
        ([1.0], "stage_costs=[1.0]: expected 2 values, one per stage"),
        ([1.0, 0.0], "stage_costs[1]=0.0: expected a time above 0"),
        ([float("nan"), 1.0], "stage_costs[0]=nan: expected a time above 0"),
        ([float("inf"), 1.0], "stage_costs[0]=inf: expected a time above 0"),
    ],
)
def test_refused_costs(costs, message):
    with pytest.raises(ValueError) as raised:
        simulate(make("GPipe", 2, 2), stage_costs=costs)
    assert str(raised.value) == message


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_written_order_is_read_back_and_pytorch_takes_it(schedule, tmp_path):
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
    from torch.distributed.pipelining.stage import PipelineStage

    made = make(schedule, 4, 8)
    path = dump([[None, *order, ""] for order in made.orders], tmp_path / "order.csv")
    read = arrange(schedule="CSV", ranks=4, microbatches=8, csv=str(path))
    assert read.orders == made.orders
    assert read.placement == made.placement
    assert read.stages_per_rank == made.stages_per_rank
    assert simulate(read).slots == simulate(made).slots
    stage = mock.create_autospec(PipelineStage, instance=True)
    stage.group_rank, stage.group_size, stage.num_stages = 0, 4, 4 * made.stages_per_rank
    stage.submod = None
    _PipelineScheduleRuntime([stage] * made.stages_per_rank, 8)._load_csv(str(path))


def test_a_file_may_place_stages_as_it_likes(tmp_path):
    path = write(tmp_path / "order.csv", "1F0,1I0,1W0", ",0F0,,0B0")
    read = arrange(schedule="CSV", ranks=2, microbatches=1, csv=path)
    assert read.placement == [[1], [0]]
    assert simulate(read).length == 5  # F0, F1, I1, then B0 beside W1


GOOD = ("0F0,0F1,0B0,0B1", "1F0,1B0,1F1,1B1")


@pytest.mark.parametrize(
    "rows, message",
    [
        (GOOD[:1], "expected 2 rows, one for each rank, not 1 (empty ones count)"),
        ((), "expected 2 rows, one for each rank, not 0 (empty ones count)"),
        ((*GOOD, ""), "expected 2 rows, one for each rank, not 3 (empty ones count)"),
        (("", ""), "expected a rank that has stage 0"),
        ((GOOD[0], "1F0,1B0,1X1,1B1"), "expected actions: a stage, F, B, I or W, and a microbatch, such as 0F3, or two at once, such as (0F4;7B0)OVERLAP_F_B; not '1X1' in row 2, cell 3"),
        ((GOOD[0], "1F0,1B0,1F1 late,1B1"), "; not '1F1 late' in row 2, cell 3"),
        ((GOOD[0], "1F,1B0,1F1,1B1"), "; not '1F' in row 2, cell 1"),
        ((GOOD[0], "1F0,1SEND_F0,1B0,1F1,1B1"), "; not '1SEND_F0' in row 2, cell 2"),
        ((GOOD[0], "1F0,(1B0;1F1)F,1B1"), "; not '(1B0;1F1)F' in row 2, cell 2"),
        ((GOOD[0], "1F0,()OVERLAP_F_B,1B1"), "; not '()OVERLAP_F_B' in row 2, cell 2"),
        (("9" * 5000 + "F0", GOOD[1]), "F0' in row 1, cell 1"),
        ((GOOD[0], "1F0,1B0,1F1"), "expected F and either B or I and W, each once, for each stage and microbatch, not F for stage 1, microbatch 1"),
        ((GOOD[0], "1F0,1B0"), "not nothing for stage 1, microbatch 1"),
        ((GOOD[0], "1F0,1B0,1F1,1I1"), "not F, I for stage 1, microbatch 1"),
        ((GOOD[0], GOOD[1] + ",1B1"), "not B, B, F for stage 1, microbatch 1"),
        ((GOOD[0], GOOD[1] + ",1W1"), "not B, F, W for stage 1, microbatch 1"),
        ((GOOD[0], GOOD[1] + ",1F2,1B2"), "expected microbatches 0 to 1, not 1F2"),
        ((GOOD[0], GOOD[1] + ",0F0"), "expected each stage on one rank, not stage 0 on 0 and 1"),
        ((GOOD[0], GOOD[1].replace("1F", "2F").replace("1B", "2B")), "expected a rank that has stage 1"),
        ((GOOD[0], GOOD[1] + ",2F0,2F1,2B0,2B1"), "expected as many stages on each rank, not [0] on rank 0 and [1, 2] on rank 1"),
        ((GOOD[0], ""), "expected as many stages on each rank, not [0] on rank 0 and [] on rank 1"),
        (("0F0,0B0,0F1,0B1", "1F1,1F0,1B0,1B1"), "expected an order that finishes: rank 0 is at 0B0 and waits for 1B0 or 1I0; rank 1 is at 1F1 and waits for 0F1"),
        ((GOOD[0], "1B0,1F0,1F1,1B1"), "rank 1 is at 1B0 and waits for 1F0"),
        ((GOOD[0], "1F0,1W0,1I0,1F1,1B1"), "rank 1 is at 1W0 and waits for 1B0 or 1I0"),
    ],
)  # fmt: skip
def test_refused_files(rows, message, tmp_path):
    path = write(tmp_path / "order.csv", *rows)
    with pytest.raises(ValueError) as raised:
        arrange(schedule="CSV", ranks=2, microbatches=2, csv=str(path))
    assert str(raised.value).startswith(f"csv={str(path)!r}: ")
    assert message in str(raised.value)


def test_files_that_are_none(tmp_path):
    def refused(**arguments):
        with pytest.raises(ValueError) as raised:
            arrange(**{"schedule": "CSV", "ranks": 2, "microbatches": 2, **arguments})
        return str(raised.value)

    absent, binary = tmp_path / "absent.csv", tmp_path / "order.csv"
    assert (
        refused(csv=absent)
        == f"csv='{absent}': expected a file that can be read (No such file or directory)"
    )
    assert (
        refused(csv=tmp_path)
        == f"csv='{tmp_path}': expected a file that can be read (Is a directory)"
    )
    binary.write_bytes(b"\xff\xfe0")
    assert "expected text in UTF-8" in refused(csv=binary)
    write(binary, '"0F0')
    assert "expected a CSV file (unexpected end of data)" in refused(csv=binary)
    write(binary, *GOOD)
    assert (
        "stages_per_rank=2: expected 1 as in the file, or None; try stages_per_rank=None"
        in refused(csv=binary, stages_per_rank=2)
    )
    assert refused(csv=binary, ranks=1) == "ranks=1: expected 2 or more"
    assert refused() == "csv=None: expected the path of a file with schedule='CSV'"
    assert refused(schedule="1F1B", csv="a.csv") == (
        "schedule='1F1B': expected 'CSV' with csv='a.csv', or csv=None"
    )


def test_imports_stay_light():
    check = (
        "import sys, nanigpt.parallel.schedule, nanigpt.parallel.schedule_picture\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)

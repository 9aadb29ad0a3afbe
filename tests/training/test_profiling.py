"""Phases of a step, traces of some, and what is told of them."""

import gzip
import json
import time

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.parallel.world import start_world
from nanigpt.training import loop
from nanigpt.training.phases import PHASES, PhaseTimers
from nanigpt.training.profiling import Trace
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trace import summarize
from tests.support import QUICK, metrics, succeed, tiny, torchrun, train


def total(row: dict) -> float:
    """All that is a part of a step."""
    return sum(row[f"ms_{phase}"] for phase in (*PHASES, "pipeline") if f"ms_{phase}" in row)


def test_phases_are_the_whole_step(tmp_path):
    """Without evaluations and checkpoints, which are no part of one."""
    edits = [
        "fiddler:steps(6)",
        *QUICK,
        "set:evaluations[val].interval=3",
        "set:checkpointer.interval=3",
    ]
    cfg = tiny("fiddler:phase_timers", "set:metrics.log_interval=2", *edits)
    for row in train(cfg, tmp_path):
        assert total(row) == pytest.approx(row["ms_per_step"], rel=0.01)
        assert row["ms_forward"] > 0 and row["ms_backward"] > 0 and row["ms_optimizer"] > 0
        assert row["ms_other"] < 0.5 * row["ms_per_step"]


def test_phases_are_the_whole_step_where_an_evaluation_is_interrupted(tmp_path):
    trainer = build(tiny("fiddler:phase_timers", "set:evaluations[val].interval=3", *QUICK[1:]))

    def interrupted(*args):
        time.sleep(0.3)
        raise KeyboardInterrupt

    trainer.evaluations["val"].run = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    last = metrics(tmp_path)[-1]
    assert last["step"] == 2 and total(last) == pytest.approx(last["ms_per_step"], rel=0.01)


def test_a_phase_is_what_is_done_after_it_was_entered(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = PhaseTimers().clock(torch.device("cpu"))  # other: 0 to 1
    clock.enter("forward")  # 1 to 3
    clock.enter("backward")  # 3 to 6
    clock.enter("forward")  # 6 to 10
    clock.pause()  # 10 to 15
    clock.enter("optimizer")  # 15 to 21, and on
    first = clock.read(2)
    assert first == {
        "ms_data": 0,
        "ms_forward": 3000,
        "ms_backward": 1500,
        "ms_optimizer": 3000,
        "ms_other": 500,
    }
    assert clock.read(1)["ms_optimizer"] == 7000


def test_without_a_profiler_nobody_listens(tmp_path):
    trainer = build(tiny("fiddler:steps(2)"))
    with trainer.profiling.open(RunDirectory(tmp_path), None) as profiler:
        assert profiler.clock is None
        profiler.before(1)
        profiler.enter("forward")
        assert not profiler.is_due(1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("traced")
    train(tiny("fiddler:steps(4)", "fiddler:profile(3, 2)", *QUICK), path)
    return path


def test_a_trace_is_of_its_steps(traced):
    with gzip.open(traced / "profile/steps_3_to_4_rank0.json.gz") as stream:
        events = json.load(stream)["traceEvents"]
    names = [e["name"] for e in events]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2
    assert names.count("phase forward") == names.count("phase backward") == 2
    assert "aten::mm" in names


def test_a_summary_divides_the_time_of_its_steps(traced):
    text = (traced / "profile/steps_3_to_4.txt").read_text().splitlines()
    table = {line[:30].strip(): float(line[30:40]) for line in text[1:]}
    assert list(table) == [*PHASES, "wall"]
    assert sum(table[phase] for phase in PHASES) == pytest.approx(table["wall"], rel=0.01)
    assert table["backward"] > table["other"] >= 0


def test_a_run_that_is_interrupted_in_a_window_writes_its_trace(tmp_path, monkeypatch):
    """But no times per step, of which it has not all."""
    trainer = build(tiny("fiddler:steps(5)", "fiddler:profile(2, 3)", *QUICK))
    steps, plain = iter(range(5)), loop.train_step

    def step(*args):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    (written,) = (tmp_path / "profile").iterdir()
    assert written.name == "steps_2_to_4_rank0.json.gz"


@pytest.mark.parametrize(
    "edits, message",
    [
        (
            ["fiddler:profile(19, 3)"],
            r"trace.start=19: .*ends by steps=20 of the run, not at step 21",
        ),
        (
            ["fiddler:memory_snapshot(21)"],
            r"memory.start=21: expected a window of steps=3 .*not at step 23",
        ),
        (["fiddler:profile(0)"], "profiling.trace.start=0: expected more than 0"),
        (["fiddler:memory_snapshot", "set:profiling.memory.max_entries=0"], "max_entries=0"),
    ],
)
def test_windows_that_cannot_be_are_refused(edits, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(*edits))


def test_a_cpu_has_no_snapshot_of_cuda_memory():
    with pytest.raises(UsageError, match="expected None on a cpu, .*CUDA memory; try memory=None"):
        build(tiny("fiddler:memory_snapshot")).check(1, "cpu")


@pytest.mark.parametrize(
    "ranks, edits, axes",
    [
        (2, ["fiddler:pipeline(2, '1F1B', 4)"], {"pp"}),
        pytest.param(
            4, ["fiddler:tensor_parallel(2)", "fiddler:fsdp(2)"], {"tp", "fsdp"},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_communication_is_told_by_mesh_axis(ranks, edits, axes, tmp_path):
    edits = ["fiddler:steps(4)", "fiddler:profile(3, 2)", "fiddler:phase_timers", *QUICK, *edits]
    succeed(torchrun(ranks, "-m", "tests.training.profiled_run", str(tmp_path / "run"), *edits))
    rows = metrics(tmp_path / "run")
    told = {n.removeprefix("ms_communication_"): v for n, v in rows[3].items() if "_comm" in n}
    assert axes <= told.keys() <= axes | {"world"}  # what all ranks sum is of no one axis
    assert all(told[axis] > 0 for axis in axes)
    assert all(total(row) == pytest.approx(row["ms_per_step"], rel=0.01) for row in rows)
    assert ("ms_pipeline" in rows[0]) == ("pp" in axes)
    text = (tmp_path / "run/profile/steps_3_to_4.txt").read_text().splitlines()
    lines = {line[:30].strip(): line for line in text[1:]}
    table = {name: float(line[30:40]) for name, line in lines.items()}
    wall = table.pop("wall")
    assert sum(table.values()) == pytest.approx(wall, rel=0.01)
    for axis in axes:
        mib = float(lines[f"communication {axis}, exposed"].split()[-2])
        assert mib > 0


def event(name, start, end, *, cat, tid=1, **args):
    return {"name": name, "ts": start, "dur": end - start, "cat": cat, "tid": tid, "args": args}


def test_communication_that_computation_hides_is_not_exposed_on_a_gpu():
    """Kernels are of the phase that the host launched them in, long before they run."""
    tp = {"Process Group Name": "7", "In msg nelems": 2**19, "dtype": "BFloat16"}
    fsdp = {"Process Group Name": "5", "In msg nelems": 2**18, "dtype": "Float"}
    events = [
        event("phase forward", 0, 100, cat="user_annotation", tid=99),
        event("phase backward", 100, 200, cat="user_annotation", tid=99),
        event("cudaLaunchKernel", 50, 55, cat="cuda_runtime", tid=99, correlation=1),
        event("cuLaunchKernel", 150, 155, cat="cuda_driver", tid=98, correlation=2),
        event("gemm", 1000, 3000, cat="kernel", correlation=1),
        event("ncclDevKernel_ReduceScatter", 3000, 4000, cat="kernel", tid=2, **tp),
        event("ncclDevKernel_AllGather", 3500, 6000, cat="kernel", tid=3, **fsdp),
        event("gemm", 4000, 9000, cat="kernel", correlation=2),
        event("ncclDevKernel_AllGather", 8000, 9500, cat="kernel", tid=3, **fsdp),
        event("gemm", 9700, 10000, cat="kernel", correlation=2),
    ]
    summary = summarize(events, steps=1, axes={"7": "tp", "5": "fsdp"})
    assert summary.wall == 9
    tp_told, fsdp_told = summary.communication["tp"], summary.communication["fsdp"]
    # From 3000 to 4000, half of which both expose, and from 9000 to 9500.
    assert tp_told.exposed + fsdp_told.exposed == pytest.approx(1.5)
    assert (tp_told.total, fsdp_told.total) == (1, 4)
    assert (tp_told.calls, fsdp_told.calls, tp_told.mib, fsdp_told.mib) == (1, 2, 1, 2)
    assert summary.phases == {
        "forward": pytest.approx(2),
        "backward": pytest.approx(5.3),
        "other": pytest.approx(0.2),  # idle
    }


def test_communication_over_gloo_is_its_label_and_what_goes_on_in_the_background():
    """Labelled by the call on the main thread, ended by a thread of the process group."""
    events = [
        event("phase forward", 0, 6000, cat="user_annotation"),
        event("phase other", 6000, 10000, cat="user_annotation"),
        event("aten::mm", 0, 1000, cat="cpu_op"),
        event("communication fsdp 1048576 _allgather_base", 1000, 1500, cat="user_annotation"),
        event("c10d::_allgather_base_", 1100, 1500, cat="cpu_op"),
        event("gloo:all_gather", 1200, 4000, cat="user_annotation", tid=2),
        event("aten::linear", 2000, 3500, cat="cpu_op"),  # calls the next one
        event("aten::mm", 2000, 3000, cat="cpu_op"),
    ]
    summary = summarize(events, steps=2, axes={})
    (told,) = summary.communication.values()
    assert told.total == pytest.approx(1.5)  # 1000 to 4000, of two steps
    assert told.exposed == pytest.approx(1.0)  # without the product from 2000 to 3000
    assert told.calls == 0.5 and told.mib == 0.5
    assert summary.phases == {"forward": pytest.approx(2), "other": pytest.approx(2)}
    assert "communication fsdp, exposed" in str(summary)


def test_a_run_that_profiled_its_memory_can_be_evaluated_on_a_cpu(tmp_path):
    trainer, world = build(tiny("fiddler:memory_snapshot")), start_world("cpu")
    trainer.check(1)
    with pytest.raises(UsageError, match="memory=MemorySnapshot: expected None on a cpu"):
        trainer.prepare(world, RunDirectory(tmp_path))


def test_a_window_that_a_resumed_run_has_passed_is_told(tmp_path, caplog):
    """Unless it was written before."""
    train(tiny("fiddler:steps(2)", "fiddler:profile(2, 1)", *QUICK), tmp_path)
    train(tiny("fiddler:steps(3)", "fiddler:profile(2, 1)", *QUICK), tmp_path)
    assert "not profiled" not in caplog.text
    train(tiny("fiddler:steps(4)", "fiddler:profile(1, 2)", *QUICK), tmp_path)
    assert "steps_1_to_2 are not profiled: the run goes on after step 3" in caplog.messages


def test_a_window_names_its_steps():
    assert str(Trace(start=7, steps=2)) == "steps_7_to_8"

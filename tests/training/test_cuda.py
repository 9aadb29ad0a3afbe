"""The same run on a GPU, where there is one."""

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world
from nanigpt.training import loop
from nanigpt.training.phases import PHASES
from nanigpt.training.run_directory import RunDirectory
from tests.support import tiny, train


@pytest.mark.cuda
def test_cuda_gives_the_losses_of_the_cpu(tmp_path):
    # Samples are the same on every device, initial weights are other draws of the same distribution,
    # since each kind of device has a random generator of its own: close, not equal.
    on_cpu, on_cuda = (
        train(tiny("fiddler:steps(5)"), tmp_path / device, device=device)
        for device in ("cpu", "cuda")
    )
    for cpu, cuda in zip(on_cpu, on_cuda, strict=True):
        assert cuda["loss"] == pytest.approx(cpu["loss"], rel=0.05)
    assert on_cuda[-1]["loss"] < on_cuda[0]["loss"]


@pytest.mark.cuda
def test_bf16_follows_fp32_on_cuda(tmp_path):
    curves = {
        dtype: train(tiny(f"tag:ComputeDType={dtype}"), tmp_path / dtype, device="cuda")
        for dtype in ("float32", "bfloat16")
    }
    for exact, rounded in zip(*curves.values(), strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "edits", [[], ["fiddler:phase_timers", "set:local_batch_size=4"]], ids=["plain", "timed"]
)
def test_steps_between_log_lines_wait_for_nothing(edits, tmp_path, monkeypatch):
    trainer = build(tiny("fiddler:steps(6)", "set:evaluations[val].interval=100", *edits))
    plain, record = loop.train_step, trainer.metrics.record

    def strictly(function):
        def strict(*args, **named):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return strict

    monkeypatch.setattr(loop, "train_step", strictly(plain))
    trainer.metrics.record = lambda row, **named: (
        record if row["step"] in (1, 6) else strictly(record)
    )(row, **named)
    trainer.run(RunDirectory(tmp_path), start_world("cuda"))


@pytest.mark.cuda
def test_batches_come_to_the_gpu_from_pinned_memory(tmp_path, monkeypatch):
    trainer = build(tiny("fiddler:steps(2)"))
    plain, pinned = loop.train_step, []

    def step(session, batches):
        pinned.extend(batch.tokens_BL.is_pinned() for batch in batches)
        return plain(session, batches)

    monkeypatch.setattr(loop, "train_step", step)
    trainer.run(RunDirectory(tmp_path), start_world("cuda"))
    assert pinned and all(pinned)


@pytest.mark.cuda
def test_phases_and_profilers_on_cuda(tmp_path):
    edits = ["fiddler:phase_timers", "fiddler:profile(5, 2)", "fiddler:memory_snapshot(3, 2)"]
    rows = train(tiny("fiddler:steps(8)", *edits), tmp_path, device="cuda")
    parts = [f"ms_{phase}" for phase in PHASES]
    for row in rows:
        assert sum(row[part] for part in parts) == pytest.approx(row["ms_per_step"], rel=0.01)
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "steps_3_to_4_rank0.pickle",
        "steps_5_to_6_rank0.json.gz",
        "steps_5_to_6.txt",
    }

"""A plain module with a task of its own, which knows no tokens, trains as a decoder does."""

import json

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world
from nanigpt.problems import ComponentError
from nanigpt.training.run_directory import RunDirectory
from tests.support import metrics, succeed, torchrun
from tests.tasks.plain import DIM, HIDDEN, config, train


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(start_world("cpu"), folder)


def test_it_learns_and_its_numbers_have_its_names(alone):
    _, rows = alone
    first, last = (sum(row["loss"] for row in part) for part in (rows[:10], rows[-10:]))
    assert last < 0.6 * first
    assert rows[-1]["samples"] == 60 * 8 and "tokens" not in rows[0]
    assert {"distance", "grad_norm", "lr", "samples_per_second", "mfu"} <= rows[0].keys()
    assert [row["step"] for row in rows if "val_loss" in row] == [20, 40, 60]
    assert rows[-1]["val_distance"] < rows[19]["val_distance"]


def test_the_validation_numbers_are_means_over_its_samples(alone):
    folder, rows = alone
    trainer = build(config())
    trainer.data.setup()
    from nanigpt.training.setup import restore

    parallel, _ = restore(trainer, RunDirectory(folder), start_world("cpu"))
    batch = trainer.data.validation_batch(list(range(40)))
    with torch.no_grad():
        errors = parallel.model(batch.x_BD)[:, 0] - batch.y_B
    assert rows[-1]["val_loss"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert rows[-1]["val_distance"] == pytest.approx(errors.abs().mean().item(), rel=1e-5)


def test_its_flops_are_counted(alone):
    """Products of a sample: forward, and twice that backward but for the gradient of the input."""
    weights = DIM * HIDDEN + 2 * HIDDEN * HIDDEN + HIDDEN
    trainer = build(config())
    trainer.data.setup()
    from nanigpt.training.setup import step_work

    work = step_work(trainer)
    assert work.unit == "samples"
    assert work.flops == pytest.approx(6 * weights, rel=0.05)


def test_two_ranks_give_the_same(alone, tmp_path):
    succeed(torchrun(2, "-m", "tests.tasks.plain", str(tmp_path)))
    rows = json.loads((tmp_path / "rows.json").read_text())
    for one, other in zip(alone[1], rows, strict=True):
        for name in ("loss", "distance", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    assert rows[-1]["val_loss"] == pytest.approx(alone[1][-1]["val_loss"], rel=1e-4)


def test_a_run_resumes(alone, tmp_path):
    trainer = build(config(steps=20))
    trainer.schedule = lambda step, steps: 1.0
    trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    whole = build(config())
    whole.schedule = trainer.schedule
    whole.run(RunDirectory(tmp_path), start_world("cpu"))
    again = build(config())
    again.schedule = trainer.schedule
    again.run(RunDirectory(tmp_path / "again"), start_world("cpu"))
    names = ("step", "loss", "grad_norm", "samples")
    seen = [
        [{k: row[k] for k in names} for row in metrics(p)] for p in (tmp_path, tmp_path / "again")
    ]
    assert seen[0] == seen[1] and len(seen[0]) == 60


@pytest.mark.parametrize("axis", ["pp", "tp"])
def test_what_it_has_no_plan_for_is_refused_by_name(axis):
    cfg = config()
    setattr(cfg.parallelizer.mesh, axis, 2)
    with pytest.raises(ComponentError, match=f"{axis}=2"):
        build(cfg).check(2)

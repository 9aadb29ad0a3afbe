"""Records and checkpoints that earlier versions wrote load, check, evaluate and resume.

`tools/make_fixtures.py` wrote them, each once. All paths in them are relative to the repository's
root, where the tests run.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support import flags, here, metrics, succeed, torchrun
from tools.arithmetic import arithmetic

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"
ALONE = sorted(path.name for path in RUNS.iterdir() if path.name != "tensor_parallel")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(RUNS.parents[2])


def unpacked(name: str, folder: Path) -> Path:
    """A copy of a stored run, as it was when it was interrupted."""
    run = folder / name
    run.mkdir(parents=True)
    for file in ("config.json", "launches.jsonl", "metrics.jsonl"):
        shutil.copy(RUNS / name / file, run)
    with tarfile.open(RUNS / name / "checkpoints.tar.xz") as archive:
        archive.extractall(run, filter="data")
    return run


def assert_equal(found: dict, expected: dict, *, exactly: bool) -> None:
    """Bit for bit, where this machine rounds like the one that trained.

    Another CPU or torch adds up in another order. What that makes of three steps is some 1e-6; a
    wrong moment of the optimizer, or samples of another order, is far more than the limits here.
    """
    if exactly:
        assert found == expected
    else:
        limits = {"grad_norm": 1e-2}
        assert found == {
            key: pytest.approx(value, rel=limits.get(key, 1e-4)) for key, value in expected.items()
        }


def assert_goes_on(run: Path, *, exactly: bool = True) -> None:
    """The rows that followed the checkpoint follow it now."""
    stored = json.loads((RUNS / run.name / "expected.json").read_text())
    exactly = exactly and stored["arithmetic"] == arithmetic()
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[:4] == metrics(RUNS / run.name)
    for row, expected in zip(rows[4:7], stored["rows"], strict=True):
        assert_equal({key: row[key] for key in expected}, expected, exactly=exactly)


def assert_evaluates(run: Path, out: str, *, exactly: bool = True) -> None:
    stored = json.loads((RUNS / run.name / "expected.json").read_text())
    exactly = exactly and stored["arithmetic"] == arithmetic()
    found = json.loads(out.splitlines()[-1])
    found = {key: found[key] for key in stored["eval"]}
    assert_equal(found, stored["eval"], exactly=exactly)


@pytest.mark.parametrize("name", [path.name for path in sorted(RUNS.iterdir())])
def test_a_stored_record_checks(name):
    succeed(here("check", f"--config=config_file:{RUNS / name / 'config.json'}"))


@pytest.mark.parametrize("name", ALONE)
def test_a_stored_run_goes_on(name, tmp_path):
    run = unpacked(name, tmp_path)
    assert_evaluates(run, succeed(here("eval", f"--run_dir={run}")))
    out = succeed(here("train", f"--config=run:{run}", f"--run_dir={run}"))
    assert "resuming after step 4" in out
    assert_goes_on(run)


def test_a_stored_run_of_two_ranks_goes_on_on_two(tmp_path):
    run = unpacked("tensor_parallel", tmp_path)
    out = succeed(torchrun(2, "-m", "nanigpt", "train", f"--config=run:{run}", f"--run_dir={run}"))
    assert "resuming after step 4" in out
    assert_goes_on(run)


def test_a_stored_run_of_two_ranks_goes_on_on_one(tmp_path):
    run = unpacked("tensor_parallel", tmp_path)
    # Evaluation runs on any number of processes, and this is how it was done when it was stored.
    assert_evaluates(run, succeed(here("eval", f"--run_dir={run}")))
    alone = flags(f"run:{run}", "tag:TensorParallel=1")
    out = succeed(here("train", *alone, f"--run_dir={run}"))
    assert "resuming after step 4" in out
    assert_goes_on(run, exactly=False)

"""FSDP2 over gloo against one process."""

import json
import shutil

import pytest

from tests.support import TINY, flags, metrics, succeed, tiny, torchrun, train


@pytest.fixture
def single(finished):
    """20 steps on one process."""
    return metrics(finished)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    out = succeed(torchrun(2, "-m", "nanigpt", "train", *flags(*TINY), f"--run_dir={path}"))
    return path, out


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    path = tmp_path_factory.mktemp("four")
    succeed(torchrun(4, "-m", "nanigpt", "train", *flags(*TINY), f"--run_dir={path}"))
    return path


def assert_equal_curves(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        if "val_loss" in other:
            assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)


def test_two_processes_give_the_curve_of_one(single, two):
    assert_equal_curves(metrics(two[0]), single)


@pytest.mark.slow
def test_four_processes_give_the_curve_of_one(single, four):
    assert_equal_curves(metrics(four), single)


def test_only_the_first_rank_prints(two):
    assert two[1].count("step  1/20") == 1
    assert two[1].count("--- sample of 'def '") == 1


def test_resuming_on_two_processes_is_bit_for_bit(two, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(two[0], path)
    shutil.rmtree(path / "checkpoints" / "step_00000020")
    out = succeed(torchrun(2, "-m", "nanigpt", "train", *flags(*TINY), f"--run_dir={path}"))
    assert "resuming after step 10" in out
    for row, other in zip(metrics(path), metrics(two[0]), strict=True):
        for key in ("step", "loss", "grad_norm", "lr", "tokens"):
            assert row[key] == other[key], (row["step"], key)
        assert row.get("val_loss") == other.get("val_loss")


def test_a_checkpoint_of_two_processes_goes_on_in_one(two, single, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(two[0], path)
    shutil.rmtree(path / "checkpoints" / "step_00000020")
    assert_equal_curves(train(tiny(), path), single)


@pytest.mark.parametrize("case", ["untied", "tied", "masked", "bf16"])
def test_sharded_model_against_whole_model(case, sharded):
    """Initial weights, gradients, sharing: see sharded_model.py, which ran on two ranks."""
    assert sharded[case] == "ok", sharded[case]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded") / "results.json"
    done = torchrun(2, "-m", "tests.parallel.sharded_model", str(path))
    succeed(done)
    return json.loads(path.read_text())


def test_ranks_of_different_configs_are_refused(tmp_path):
    code = (
        "import os, sys; from nanigpt.cli.main import main; "
        "sys.exit(main([*sys.argv[1:], '--config=set:seed=' + os.environ['RANK']]))"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    done = torchrun(2, str(script), "train", *flags(*TINY), f"--run_dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "has a config of fingerprint" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused_on_every_rank(tmp_path):
    arguments = [*flags(*TINY, "set:local_batch_size=8"), f"--run_dir={tmp_path / 'run'}"]
    done = torchrun(2, "-m", "nanigpt", "train", *arguments)
    assert done.returncode != 0
    assert "expected a multiple of local batch 8 x 2 data-parallel ranks = 16" in done.stderr
    assert not (tmp_path / "run").exists()

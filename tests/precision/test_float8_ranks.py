"""Float8 on several ranks against one process."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from nanigpt.parallel.world import start_world
from tests.precision.float8_ranks import CASES, config, train
from tests.support import succeed, torchrun

USUAL = ("fsdp", "fsdp resumed", "tp")
# Relative to one process, of the first loss and of all that follows. Rounding is all or nothing: a
# sum in another order sends some number to the next one of 8 bits, and training carries that on.
FIRST, BOUND = 2e-5, 3e-3
# These have scales of their own parts of sequences, or of experts' features.
OWN_SCALES = {"cp": (2e-3, 5e-3), "experts tp": (2e-3, 1e-2)}


@functools.cache
def alone(*edits: str) -> dict:
    """The same on this process."""
    with tempfile.TemporaryDirectory() as folder:
        return train(config(*edits), start_world("cpu"), Path(folder))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    before = train(config(), start_world("cpu"), folder / "fsdp resumed", save=True)
    torch.save(before, folder / "before.pt")
    succeed(torchrun(2, "-m", "tests.precision.float8_ranks", str(folder), *USUAL))
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    on_four = ["tp fsdp"]
    on_two = [case for case in CASES if case not in (*USUAL, *on_four)]
    for ranks, cases in ((2, on_two), (4, on_four)):
        succeed(torchrun(ranks, "-m", "tests.precision.float8_ranks", str(folder), *cases))
    return folder


def assert_as_alone(folder: Path, case: str) -> None:
    got, want = torch.load(folder / f"{case}.pt"), alone(CASES[case][0])
    first, bound = OWN_SCALES.get(case, (FIRST, BOUND))
    assert got["rows"][0][0] == pytest.approx(want["rows"][0][0], rel=first)
    for row, expected in zip(got["rows"], want["rows"], strict=True):
        assert row == pytest.approx(expected, rel=bound)
    assert got["validation"] == pytest.approx(want["validation"], rel=bound)
    for name, weight in want["initial"].items():
        if name in got["initial"]:  # a pipeline's first rank has some
            assert torch.equal(got["initial"][name], weight), name


@pytest.mark.parametrize("case", [case for case in USUAL if case != "fsdp resumed"])
def test_two_ranks_give_what_one_process_gives(case, usual):
    assert_as_alone(usual, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in USUAL])
def test_more_ways_to_divide_a_model(case, deep):
    assert_as_alone(deep, case)


def test_float8_is_not_what_full_precision_is(usual):
    """Or the comparisons above would say nothing of float8."""
    plain = torch.load(usual / "before.pt")["rows"]
    assert alone(CASES["fsdp"][0])["rows"][0][0] != pytest.approx(plain[0][0], rel=10 * FIRST)


def test_weights_of_all_projections_but_the_head_are_gathered_in_float8(usual):
    assert torch.load(usual / "fsdp.pt")["gathered"] == (2 * 7, {torch.float8_e4m3fn})
    assert torch.load(usual / "tp.pt")["gathered"] == (0, set())


def test_checkpoints_are_those_without_float8(usual, tmp_path):
    """One process without it goes on from two ranks with it, and they from it."""
    saved = torch.load(usual / "fsdp.pt")["weights"]
    went_on = train(config(), start_world("cpu"), usual / "fsdp")
    assert_equal(went_on["initial"], saved)
    before, resumed = (torch.load(usual / f"{name}.pt") for name in ("before", "fsdp resumed"))
    assert_equal(resumed["initial"], before["weights"])
    assert resumed["rows"][0][0] == pytest.approx(went_on["rows"][0][0], rel=0.01)
    for file in (usual / "fsdp" / "checkpoints").rglob("*.distcp"):
        assert b"torchao" not in file.read_bytes()


def assert_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name

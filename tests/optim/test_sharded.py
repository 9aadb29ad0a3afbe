"""Optimizers on shards are optimizers on whole parameters, and their state goes on elsewhere."""

import json

import pytest
import torch

from nanigpt.errors import UsageError
from nanigpt.parallel.world import start_world
from nanigpt.training.checkpoint import Checkpointer
from nanigpt.training.run_directory import RunDirectory
from tests.optim.sharded_optimizers import LR, MUON, OF_FOUR_RANKS, OF_TWO_RANKS, step, whole
from tests.support import succeed, tiny, torchrun


def run(ranks, cases, folder):
    names = [case.__name__ for case in cases]
    succeed(torchrun(ranks, "-m", "tests.optim.sharded_optimizers", str(folder), *names))
    return folder, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return run(4, OF_FOUR_RANKS, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return run(2, OF_TWO_RANKS, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", [case.__name__ for case in OF_FOUR_RANKS])
def test_on_four_ranks(of_four, case):
    assert of_four[1][case] == "ok", of_four[1][case]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.__name__ for case in OF_TWO_RANKS])
def test_on_two_ranks(of_two, case):
    assert of_two[1][case] == "ok", of_two[1][case]


def test_muon_goes_on_in_one_process(of_four):
    """What four ranks began, one resumes: momentum is the whole model's in a checkpoint."""
    expected_optimizer, expected = whole(tiny(*MUON))
    optimizer, model = whole(tiny(*MUON))
    directory = RunDirectory(of_four[0] / "muon")
    progress = Checkpointer().load_latest(directory, start_world("cpu"), model, optimizer)
    assert progress.step == 1
    for _ in range(2):
        step(expected_optimizer, expected)
    step(optimizer, model)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-3 * LR, rtol=0)
        state, other = optimizer.state[p], expected_optimizer.state[q]
        assert state.keys() == other.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_blocks_of_eight_bits_that_would_be_cut_are_refused(of_two):
    optimizer, model = whole(tiny("set:optimizer.state=8bit"))
    directory = RunDirectory(of_two[0] / "eight_bit")
    with pytest.raises(
        UsageError, match="each rank stored its part of the optimizer's 8-bit state"
    ):
        Checkpointer().load_latest(directory, start_world("cpu"), model, optimizer)

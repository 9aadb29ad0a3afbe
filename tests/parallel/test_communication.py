"""Collectives are as many as there should be; a model of two blocks on two ranks."""

import json

import pytest

from tests.support import succeed, torchrun

GROUPS = 4  # embedding, two blocks, norm with head
GATHER, REDUCE = "allgather_base", "reduce_scatter_base"  # FSDP's
SEQUENCE = {"all_gather_into_tensor": 5, "reduce_scatter_tensor": 5}


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("communication") / "counts.json"
    succeed(torchrun(2, "-m", "tests.parallel.communication", str(path)))
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("case", "gathered_again"), [("always", GROUPS), ("never", 0), ("default", GROUPS - 1)]
)
def test_fsdp_gathers_every_group_once_or_twice(case, gathered_again, counts):
    got = counts[f"fsdp {case}"]
    assert got["forward"] == {GATHER: GROUPS}
    assert got["backward"].get(GATHER, 0) == gathered_again
    assert got["backward"][REDUCE] == GROUPS


def test_accumulation_reduces_gradients_once(counts):
    got = counts["fsdp, two batches"]
    assert got["forward"] == {GATHER: 2 * GROUPS}
    assert got["backward"][REDUCE] == GROUPS


def test_a_pipeline_reduces_gradients_once(tmp_path):
    """However many local batches an optimizer step has."""
    path = tmp_path / "counts.json"
    succeed(torchrun(4, "-m", "tests.parallel.communication", str(path)))
    counts = json.loads(path.read_text())
    assert counts["1"][REDUCE] > 0
    assert counts["2"][REDUCE] == counts["1"][REDUCE]


def test_sequence_parallel_gathers_and_scatters_rather_than_all_reduces(counts):
    """Scattered: the embedding and two matrices per block; gathered: two inputs per block, and the
    head's. Gathered besides are the denominator and the own logit of each token, for the loss."""
    assert counts["tp"]["forward"] == SEQUENCE | {"all_gather_into_tensor": 5 + 1}
    assert counts["tp"]["backward"] == SEQUENCE


def test_without_sequence_parallel_everything_is_reduced_whole(counts):
    assert counts["tp without sequence"]["forward"] == {
        "all_reduce": 5,
        "all_gather_into_tensor": 1,
    }
    assert counts["tp without sequence"]["backward"] == {"all_reduce": 5}


@pytest.mark.parametrize(
    ("case", "operation", "again"),
    [("tp", "reduce_scatter_tensor", 2), ("ep", "all_to_all_single", 6)],
)
def test_what_came_from_other_ranks_is_not_sent_again_by_selective(case, operation, again, counts):
    """As by `full`, but for each block's last output, which no gradient reads."""
    none, selective, full = (
        counts[f"{case} {mode}"]["backward"][operation] for mode in ("none", "selective", "full")
    )
    assert selective == none
    assert full == none + again

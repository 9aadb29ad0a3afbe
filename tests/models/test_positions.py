"""Learned positions against a plain look-up."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.init import TruncatedNormal, initialize, materialize
from nanigpt.models.positions import LearnedPositions

CFG = fdl.Config(
    LearnedPositions, max_positions=16, dim=6, initializer=fdl.Config(TruncatedNormal, std=0.02)
)


@pytest.fixture
def positions():
    module = build(CFG)
    materialize(module, "cpu")
    initialize(module, seed=0)
    return module


def naive(x_BLD, table, positions_BL):
    rows = [[table[p] for p in row] for row in positions_BL]
    return x_BLD + torch.stack([torch.stack(row) for row in rows])


def test_rows_are_added_at_their_positions(positions):
    x_BLD = torch.randn(3, 10, 6)
    counted = torch.arange(10).expand(3, 10)
    expected = naive(x_BLD, positions.weight, counted)
    assert torch.equal(positions(x_BLD), expected)
    assert torch.equal(positions(x_BLD, counted), expected)
    other = torch.randint(16, (3, 10))
    assert torch.equal(positions(x_BLD, other), naive(x_BLD, positions.weight, other))
    # As of a cache, which has one row of positions for the whole batch.
    after = torch.arange(5, 7).view(1, 2)
    expected = naive(x_BLD[:, :2], positions.weight, after.expand(3, 2))
    assert torch.equal(positions(x_BLD[:, :2], after), expected)


def test_gradients_of_a_row_are_summed_over_the_batch(positions):
    gradient = torch.randn(3, 10, 6)
    positions(torch.zeros(3, 10, 6)).backward(gradient)
    expected = torch.zeros(16, 6)
    expected[:10] = gradient.sum(0)
    torch.testing.assert_close(positions.weight.grad, expected)


def test_activations_keep_their_dtype(positions):
    x_BLD = torch.randn(3, 10, 6, dtype=torch.bfloat16)
    assert positions(x_BLD).dtype == torch.bfloat16
    assert positions(x_BLD, torch.arange(10).view(1, 10)).dtype == torch.bfloat16


def test_sizes_are_checked():
    cfg = fdl.deepcopy_with(CFG, max_positions=0)
    with pytest.raises(UsageError, match="max_positions=0"):
        build(cfg)
    assert build(CFG).max_sequence_length == 16

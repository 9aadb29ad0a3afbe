"""Where ranks drop the same features, and where others."""

import itertools

import torch

from nanigpt.models.dropout import Dropout
from nanigpt.models.init import initialize, materialize
from nanigpt.parallel.dropout import place_dropout
from nanigpt.parallel.mesh import AXES, Layout

SHAPE = (2, 8, 64)


def kept(*, splits_sequence=True, **position):
    """What a rank at this position of a mesh of 2 x 2 x 2 x 2 x 2 keeps of its first rows."""
    model = torch.nn.ModuleDict({"dropout": Dropout(p=0.5)})
    materialize(model, "cpu")
    initialize(model, seed=0)
    sizes = {**dict.fromkeys(AXES, 2), "ep": 1}
    layout = Layout(None, sizes, {**dict.fromkeys(AXES, 0), **position})
    place_dropout(model, layout, splits_sequence=splits_sequence)
    return model["dropout"](torch.ones(SHAPE)) > 0


def test_ranks_of_other_tokens_drop_other_features():
    axes = ("dp_replicate", "dp_shard", "cp")
    masks = [
        kept(**dict(zip(axes, position, strict=True)))
        for position in itertools.product(range(2), repeat=3)
    ]
    for a, b in itertools.combinations(masks, 2):
        assert 0.4 < (a == b).float().mean() < 0.6


def test_ranks_of_tp_have_parts_of_one_choice():
    first, second = kept(), kept(tp=1)
    assert 0.4 < (first == second).float().mean() < 0.6
    for rank in range(2):
        assert torch.equal(kept(tp=rank, splits_sequence=False), first)


def test_stages_differ_by_the_names_of_their_modules_alone():
    assert torch.equal(kept(pp=1), kept())

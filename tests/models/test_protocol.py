"""Models that answer nothing of what the project may ask them."""

import pytest
from torch import nn

from nanigpt.models.protocol import blocks, blocks_here, shard_groups


class Layers(nn.Module):
    """Has its blocks in a ModuleList of any name, also of a name that the project asks for."""

    def __init__(self, name: str):
        super().__init__()
        self.first = nn.Linear(2, 2)
        setattr(self, name, nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))


@pytest.mark.parametrize("name", ["layers", "blocks", "shard_groups"])
def test_elements_of_a_module_list_are_blocks_whatever_its_name(name):
    model = Layers(name)
    expected = list(getattr(model, name))
    assert blocks(model) == blocks_here(model) == expected
    assert shard_groups(model) == [[block] for block in expected]

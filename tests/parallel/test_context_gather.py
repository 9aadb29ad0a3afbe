"""Keys of all ranks, by whichever name torch has for the collective."""

import torch
from torch.distributed import _functional_collectives as functional

from nanigpt.parallel import context

NAMES = ("all_gather_single_autograd", "all_gather_tensor_autograd")  # since 2.13; torch 2.11


class TwoRanks:
    def size(self):
        return 2


def test_the_name_is_that_of_the_installed_torch(monkeypatch):
    x = torch.arange(6).view(1, 6)
    for name in NAMES:
        for other in NAMES:
            monkeypatch.delattr(functional, other, raising=False)
        monkeypatch.setattr(
            functional, name, lambda x, dim, mesh: torch.cat([x, -x]), raising=False
        )
        assert context._gather(x, TwoRanks()).tolist() == torch.cat([x, -x], dim=1).tolist()

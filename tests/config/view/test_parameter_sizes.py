"""Parameters and shapes of nodes, from a build on meta."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.compose.flag import compose
from nanigpt.config.view.parameter_sizes import n_parameters, sizes
from nanigpt.errors import UsageError
from tests.config.components import whole
from tests.support import each_recipe


class Pair(torch.nn.Module):
    def __init__(self, *, left: torch.nn.Module, right: torch.nn.Module):
        super().__init__()
        self.left, self.right = left, right
        self.scale = torch.nn.Parameter(torch.empty(3))


class Holder:
    """No module, but holds one."""

    def __init__(self, *, module: torch.nn.Module):
        self.module = module


def linear() -> fdl.Config:
    return fdl.Config(torch.nn.Linear, 1_000_000, 1_000_000)


def test_every_node_has_its_own_shapes_and_all_parameters_below():
    pair = fdl.Config(Pair, left=linear(), right=linear())
    cfg = fdl.Config(Holder, module=pair)
    found = sizes(cfg)  # 8 TB, were it not on meta
    one = 1_000_000 * 1_000_001
    assert n_parameters([found[id(pair.left)]]) == one
    assert n_parameters([found[id(pair)]]) == n_parameters([found[id(cfg)]]) == 2 * one + 3
    assert found[id(pair.left)].tensors == (
        ("weight", (1_000_000, 1_000_000)),
        ("bias", (1_000_000,)),
    )
    assert found[id(pair)].tensors == (("scale", (3,)),)
    assert found[id(cfg)].tensors == ()


def test_what_is_shared_counts_once():
    shared = linear()
    cfg = fdl.Config(Pair, left=shared, right=shared)
    found = sizes(cfg)
    assert n_parameters([found[id(cfg)]]) == 1_000_000 * 1_000_001 + 3
    assert n_parameters([found[id(shared)]] * 5) == 1_000_000 * 1_000_001


@pytest.mark.parametrize("name", each_recipe())
def test_recipes_agree_with_their_models(name):
    cfg = compose([f"config:{name}"])
    assert n_parameters([sizes(cfg)[id(cfg)]]) == fdl.build(cfg.model).n_parameters()


def test_buffers_are_shown_and_not_counted():
    cfg = compose(["config:llama3_8b"])
    size = sizes(cfg)[id(cfg.model.layers[0].attention.rope)]
    assert [shape for _, shape in size.tensors] == [(2, 8192, 64)]
    assert n_parameters([size]) == 0


def test_what_does_not_build_says_where():
    cfg = whole()
    cfg.parts[1].size = -1
    with pytest.raises(UsageError, match=r"^parts\[1\]: size=-1: expected 0 or more$"):
        sizes(cfg)
    cfg.parts[1].size = "x"
    with pytest.raises(UsageError, match=r"^parts\[1\]\.size='x': expected int"):
        sizes(cfg)

"""Initial weights and shared tensors."""

import pytest
import torch
from torch import nn

from nanigpt.models.init import (
    Constant,
    FanInNormal,
    TruncatedNormal,
    initialize,
    materialize,
    uninitialized,
)
from tests.support import built_model, tiny


def test_truncated_normal_has_its_moments_and_bounds():
    weight = torch.empty(1000, 200)
    TruncatedNormal(std=0.02, cutoff=3.0)(weight, torch.Generator().manual_seed(0))
    assert abs(weight.mean().item()) < 2e-4
    assert 0.0193 < weight.std().item() < 0.02  # cut at 3 sigma: 0.9866 of sigma
    assert weight.abs().max().item() <= 0.06


def test_fan_in_normal_keeps_the_scale_of_its_inputs():
    generator = torch.Generator().manual_seed(0)
    for fan_in in (64, 1024):
        weight = torch.empty(512, fan_in)
        FanInNormal(scale=0.5)(weight, generator)
        out = torch.randn(256, fan_in, generator=generator) @ weight.T
        assert 0.47 < out.std().item() < 0.53


def test_output_projections_are_scaled_by_depth():
    model = built_model(tiny())
    layer = model.layers[0]
    ratio = layer.attention.wo.weight.std() / layer.attention.wq.weight.std()
    assert abs(ratio.item() * (2 * 2) ** 0.5 - 1) < 0.05  # debug_scale leaves 2 layers


def test_weights_depend_on_seed_and_name_only():
    first, again, other = (built_model(tiny(), seed=s) for s in (1, 1, 2))
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name
    assert not torch.equal(first.layers[0].attention.wq.weight, first.layers[1].attention.wq.weight)


class Shared(nn.Module):
    """A parameter under two names, and a persistent buffer under three."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Module() for _ in range(3))
        weight = nn.Parameter(torch.empty(4, device="meta"))
        table = torch.empty(2, device="meta")
        for part in self.parts:
            part.register_buffer("table", table)
        self.parts[0].weight = weight
        self.parts[2].weight = weight
        self.parts[0].initializers = lambda: {"weight": Constant(value=3.0)}

    def reset_buffers(self):
        self.parts[0].table.fill_(7.0)


def test_shared_tensors_stay_shared_through_memory_and_initialisation():
    model = Shared()
    materialize(model, "cpu")
    initialize(model, seed=0)
    assert model.parts[0].weight is model.parts[2].weight
    assert len({id(part.table) for part in model.parts}) == 1
    state = model.state_dict()
    assert len(state) == 5
    assert len({t.data_ptr() for t in state.values()}) == 2
    assert state["parts.2.weight"].tolist() == [3.0] * 4
    assert state["parts.2.table"].tolist() == [7.0] * 2


def test_a_tied_head_and_the_rope_table_are_one_tensor_each():
    model = built_model(tiny(recipe="llama3_1b"))
    assert model.head.weight is model.embedding.weight
    buffers = list(model.named_buffers(remove_duplicate=False))
    assert len(buffers) == len(model.layers)
    assert len({id(b) for _, b in buffers}) == 1
    state = model.state_dict()
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    other = built_model(tiny(recipe="llama3_1b"), seed=5)
    other.load_state_dict(state)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, model.embedding.weight)


def test_a_parameter_without_initialiser_is_an_error():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match=r"reset_parameters\(\) to give a value to .* 'gain'"):
        initialize(Scale(), seed=0)


class Table(nn.Module):
    """Its tensors are plain attributes."""

    def __init__(self):
        super().__init__()
        self.table = torch.arange(8)
        self.masks = [torch.ones(2)]
        self.sizes = [1, 2]
        self.register_buffer("offset", torch.zeros(2))

    def reset_parameters(self):
        self.offset.fill_(1)
        self.table = torch.arange(8)


def test_a_tensor_that_is_a_plain_attribute_has_no_value():
    with torch.device("meta"):
        model = nn.Sequential(Table())
    found = uninitialized(model)
    assert [problem.component for problem in found] == [model[0]] * 2
    assert str(found[0]).startswith("expected a buffer 'table' (register_buffer) and a reset_param")
    assert str(found[1]).startswith("expected a buffer 'masks' (register_buffer)")
    assert uninitialized(Table()) == []  # where it is built by hand, they have values

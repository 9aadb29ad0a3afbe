"""A forward pass on meta names plain modules that do not fit where they stand."""

import pytest
import torch
from torch import nn

from nanigpt.models.shapes import says_all_widths, shape_problems
from nanigpt.problems import Problem
from tests.support import built_model, tiny

DIM = 8


class Block(nn.Module):
    shape_preserving = ("norm", "attention", "feed_forward")

    def __init__(self, *, norm=None, attention=None, feed_forward=None):
        super().__init__()
        self.norm = norm or nn.LayerNorm(DIM)
        self.attention = attention or Attention()
        self.feed_forward = feed_forward or feed_forward_of(DIM, DIM)

    def forward(self, x, places=None):
        x = x + self.attention(self.norm(x), places=places)
        return x + self.feed_forward(self.norm(x))


class Model(nn.Module):
    shape_preserving = ("layers",)

    def __init__(self, *layers):
        super().__init__()
        self.embedding = nn.Embedding(16, DIM)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(DIM, 16)

    def forward(self, ids, places=None):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, places=places)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wq = nn.Linear(DIM, DIM)

    def forward(self, x, places=None):
        return self.wq(x)


class WithoutPlaces(nn.Module):
    def forward(self, x):
        return x


class Mean(nn.Module):
    """Its output is added to the stream without an error, as it is broadcast."""

    def forward(self, x):
        return x.mean(-1, keepdim=True)


class Nothing(nn.Module):
    def forward(self, x):
        return None


class Counts(nn.Module):
    def forward(self, x):
        return x[x > 0].reshape(x.shape) if x.sum().item() else x


class Unwritten(nn.Module):
    """It has no forward pass."""


class OnTheCPU(nn.Module):
    def forward(self, x):
        return x + torch.ones(x.shape[-1])


class Masked(nn.Module):
    """It makes a mask in its first forward pass, and keeps it."""

    def __init__(self):
        super().__init__()
        self.mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(x.shape[-1], device=x.device)
        return x * self.mask


def feed_forward_of(first, last):
    return nn.Sequential(nn.Linear(first, 32), nn.ReLU(), nn.Linear(32, last))


def ids():
    return torch.empty(2, 4, dtype=torch.long, device="meta")


def problems(*layers, places=None):
    model = Model(*layers)
    return model, shape_problems(model, ids(), places=places)


def test_a_model_that_fits_has_no_problems_and_is_left_as_it_was():
    model, found = problems(Block(), Block())
    assert found == []
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model(torch.zeros(2, 4, dtype=torch.long)).shape == (2, 4, 16)
    assert not model.head.weight.is_meta


@pytest.mark.parametrize(
    "slot, module, at, expected",
    [
        ("feed_forward", feed_forward_of(DIM, 6), lambda m: m,
         "an output of its input's shape [2, 4, 8], not [2, 4, 6]"),
        ("norm", Mean(), lambda m: m, "an output of its input's shape [2, 4, 8], not [2, 4, 1]"),
        ("norm", Nothing(), lambda m: m, "an output of its input's shape [2, 4, 8], not NoneType"),
        ("feed_forward", feed_forward_of(6, DIM), lambda m: m[0],
         "a forward pass of [2, 4, 8] in Sequential, but it raised RuntimeError: "),
        ("norm", nn.LayerNorm(6), lambda m: m,
         "a forward pass of [2, 4, 8], but it raised RuntimeError: "),
        ("attention", WithoutPlaces(), lambda m: m,
         "a forward pass of ([2, 4, 8], places=None), but it raised TypeError: "),
        ("norm", Unwritten(), lambda m: m,
         "a forward pass of [2, 4, 8], but it raised NotImplementedError: "),
    ],
)  # fmt: skip
def test_the_module_that_does_not_fit_is_named(slot, module, at, expected):
    _, found = problems(Block(), Block(**{slot: module}))
    assert found
    assert all(problem.component is at(module) for problem in found)
    assert found[0].message().startswith(f"expected {expected}")


def test_every_module_that_does_not_fit_is_named_once_a_pass():
    wide, mean = feed_forward_of(DIM, 6), Mean()
    _, found = problems(
        Block(feed_forward=wide), Block(attention=WithoutPlaces()), Block(norm=mean)
    )
    assert [type(problem.component) for problem in found] == [
        nn.Sequential,
        WithoutPlaces,
        Mean,
        Mean,
    ]


class Counted(nn.Module):
    passes = 0

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(DIM, width)
        self.act = lambda x: x

    def forward(self, x):
        type(self).passes += 1
        return self.act(self.linear(x))


def test_equal_modules_run_once_and_all_are_named():
    layers = [Block(feed_forward=Counted(6 if i % 2 else DIM)) for i in range(20)]
    Counted.passes = 0
    _, found = problems(*layers)
    assert Counted.passes == 2
    assert [problem.component for problem in found] == [b.feed_forward for b in layers[1::2]]


def test_modules_of_other_content_are_not_equal():
    layers = [Block(feed_forward=Counted(DIM)) for _ in range(2)]
    layers[1].feed_forward.act = lambda x: x[..., :3]
    _, found = problems(*layers)
    assert [problem.component for problem in found] == [layers[1].feed_forward]


def test_modules_that_say_their_width_need_no_pass():
    assert says_all_widths(built_model(tiny()))
    model = built_model(tiny())
    model.layers[0].feed_forward = Counted(DIM)
    assert not says_all_widths(model)


def test_a_module_outside_of_any_block_ends_the_pass():
    model = Model(Block())
    model.head = nn.Linear(6, 16)
    [problem] = shape_problems(model, ids())
    assert problem.component is model.head


def test_a_module_that_needs_values_is_no_problem_and_is_told(caplog):
    layers = [Block(feed_forward=Counts()), Block(norm=OnTheCPU()), Block(feed_forward=Nothing())]
    _, found = problems(*layers, Block(feed_forward=Counts()))
    assert [problem.component for problem in found] == [layers[2].feed_forward]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(
        "Counts (layers.0.feed_forward and 1 more) is not checked: it does not run on"
    )
    assert told[0].endswith("cannot be called on meta tensors)")
    assert told[1].startswith("OnTheCPU (layers.1.norm) is not checked")


def test_a_pass_that_ends_early_is_told(caplog):
    model = Model(Block(feed_forward=Nothing()))
    model.embedding = Counts()
    assert shape_problems(model, torch.empty(2, 4, DIM, device="meta")) == []
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("Counts (embedding) is not checked")
    assert told.endswith(", nor are the modules after it")


def test_what_a_forward_pass_keeps_is_forgotten():
    block = Block(norm=Masked())
    with torch.device("meta"):
        on_meta = Block(norm=Masked())
    for model in (Model(block), Model(on_meta)):
        assert shape_problems(model, ids()) == []
        assert model.layers[0].norm.mask is None
    assert Model(block)(torch.zeros(2, 4, dtype=torch.long)).device.type == "cpu"


def test_weights_in_memory_are_not_used():
    model = Model(Block())
    with torch.device("meta"):
        on_meta = Model(Block())
    assert shape_problems(model, ids()) == shape_problems(on_meta, ids()) == []


def test_shared_modules_are_guarded_once():
    norm = Mean()
    _, found = problems(Block(norm=norm), Block(norm=norm))
    assert [problem.component for problem in found] == [norm] * 4
    assert isinstance(found[0], Problem)
    assert "forward" not in vars(norm)

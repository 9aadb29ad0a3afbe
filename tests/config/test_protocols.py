"""Slots of protocols and callables take what their caller can use, and name what it cannot."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import fiddle as fdl
import pytest
import torch
from torch import nn

from nanigpt.config.check.assembly import Assembly
from nanigpt.config.protocols import class_lacks, object_lacks, partial_lacks
from nanigpt.errors import UsageError
from nanigpt.optim.adamw import adamw
from tests.config.components import pair


class Writer(Protocol):
    name: str

    def write(self, rows, /, *, flush: bool = False) -> None: ...


class Task(Protocol):
    @property
    def losses(self) -> tuple: ...

    def finish(self, head, /, *hidden, **targets): ...


class Scale(Protocol):
    def __call__(self, x_BLD, /): ...


class ByName(Protocol):
    def scale(self, x): ...


class Good:
    def __init__(self, name: str = "n"):
        self.name = name

    def write(self, what, *, flush=False):
        pass


class Nameless:
    def write(self, rows, *, flush=False):
        pass


class TooFew(Good):
    def write(self):
        pass


class NoFlush(Good):
    def write(self, rows):
        pass


class Demanding(Good):
    def write(self, rows, where, *, flush=False):
        pass


class Static(Good):
    @staticmethod
    def write(rows, flush=False):
        pass


class ClassWide(Good):
    @classmethod
    def write(cls, rows, **options):
        pass


class Modelling:
    losses = ("loss",)

    def finish(self, head, hidden, further, *, labels):
        pass


class Doubler(nn.Module):
    def forward(self, x):
        return 2 * x


class Tensors:
    def __call__(self, x) -> torch.Tensor:
        return x


class Adder(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    "made, protocol, lacks",
    [
        (Good, Writer, None),
        (Static, Writer, None),
        (ClassWide, Writer, None),
        (Modelling, Task, None),
        (Doubler, Scale, None),
        (nn.Linear, Scale, None),
        (Doubler, Callable, None),
        (Doubler, Callable[[torch.Tensor], torch.Tensor], None),
        (Doubler, Callable[..., Any], None),
        (dict, Writer, "dict has no method 'write'"),
        (TooFew, Writer, "write() cannot be called as write(rows, /, *, flush=False): too many positional arguments"),
        (NoFlush, Writer, "write(rows) cannot be called as write(rows, /, *, flush=False): got an unexpected keyword argument 'flush'"),
        (Demanding, Writer, "write(rows, where, *, flush=False) cannot be called as write(rows, /, *, flush=False): missing a required argument: 'where'"),
        (Good, Scale, "Good has no method '__call__'"),
        (Adder, Scale, "__call__(x, y) cannot be called as __call__(x_BLD, /): missing a required argument: 'y'"),
        (Good, Callable, "Good cannot be called"),
        (Tensors, Callable[..., float], "Tensors.__call__ returns Tensor, not float"),
        (Tensors, Callable[..., torch.Tensor], None),
        (Adder, Callable[[int], int], "__call__(x, y) cannot be called as __call__(_0, /): missing a required argument: 'y'"),
        (type("Y", (), {"scale": lambda self, y: y}), ByName, "scale(y) cannot be called as scale(x): missing a required argument: 'y'"),
    ],
)  # fmt: skip
def test_classes(made, protocol, lacks):
    assert class_lacks(made, protocol) == lacks


@pytest.mark.parametrize(
    "value, protocol, lacks",
    [
        (Good(), Writer, None),
        (Doubler(), Scale, None),
        (torch.relu, Scale, None),
        (lambda x: x, Scale, None),
        (Nameless(), Writer, "Nameless has no attribute 'name'"),
        (3, Writer, "int has no attribute 'name'"),
        (3, Callable, "int cannot be called"),
        (lambda: 0, Scale, "__call__() cannot be called as __call__(x_BLD, /): too many positional arguments"),
    ],
)  # fmt: skip
def test_objects(value, protocol, lacks):
    assert object_lacks(value, protocol) == lacks


def test_a_property_is_not_asked_for_its_value():
    class FromFile:
        read = 0

        @property
        def losses(self):
            FromFile.read += 1

        def finish(self, head, /, *hidden, **targets): ...

    assert object_lacks(FromFile(), Task) is None
    assert FromFile.read == 0


@pytest.mark.parametrize(
    "function, annotation, fits",
    [
        (adamw, Scale, True),
        (adamw, Callable[..., Any], True),
        (adamw, Callable[[int, int], float], False),
        (adamw, Callable[..., torch.optim.Optimizer], True),
        (adamw, Callable[..., float], False),
        (nn.Linear, Callable[..., nn.Module], True),
        (nn.Linear, Callable[..., torch.Tensor], False),
        (pair, Callable[[int, int], tuple], True),
        (pair, Callable[[int, int], float], False),
        (adamw, Writer, False),
    ],
)
def test_partials(function, annotation, fits):
    assert (partial_lacks(function, annotation) is None) == fits


class Loss:
    def __call__(self, head, hidden, labels):
        pass


class Block(nn.Module):
    """Slots of modules."""

    def __init__(self, *, feed_forward: nn.Module, norm: nn.Module):
        super().__init__()


class Slots:
    def __init__(
        self,
        *,
        writer: Writer | None = None,
        writers: Sequence[Writer] = (),
        scale: Scale | None = None,
        call: Callable[[int], int] | None = None,
    ):
        pass


def returns_writer(name="n"):
    return Good(name)


def returns_pair():
    return 1, 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"writer": fdl.Config(Good)},
        {"writer": fdl.Config(returns_writer)},
        {"writers": [fdl.Config(Good), fdl.Config(returns_writer)]},
        {"writers": (fdl.Config(Good),)},
        {"scale": fdl.Config(Doubler)},
        {"scale": fdl.Partial(pair, b=1)},
        {"scale": torch.relu},
        {"call": fdl.Partial(pair)},
        {"call": fdl.Config(Doubler)},
        {"call": abs},
        {"call": None},
    ],
)
def test_what_fits_is_no_problem(arguments):
    assert list(map(str, Assembly(fdl.Config(Slots, **arguments)).findings)) == []


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"writer": fdl.Config(NoFlush)}, "writer: expected Writer or None, not NoFlush (write(rows) cannot be called as"),
        ({"writer": fdl.Config(Nameless)}, "writer: expected Writer or None, not Nameless (Nameless has no attribute 'name')"),
        ({"writer": fdl.Config(returns_pair)}, "writer: expected Writer or None, not returns_pair, which returned tuple (tuple has no attribute 'name')"),
        ({"writer": fdl.Partial(Good)}, "writer: expected Writer or None, not Good (partial has no attribute 'name')"),
        ({"writer": 3}, "writer=3: expected Writer or None (int has no attribute 'name')"),
        ({"writers": [fdl.Config(Good), fdl.Config(Nameless)]}, "writers[1]: expected Writer, not Nameless (Nameless has no attribute 'name')"),
        ({"writers": (3,)}, "writers[0]=3: expected Writer (int has no attribute 'name')"),
        ({"writers": 3}, "writers=3: expected Sequence"),
        ({"scale": fdl.Config(Good)}, "scale: expected Scale or None, not Good (Good has no method '__call__')"),
        ({"scale": fdl.Partial(returns_pair)}, "scale: expected Scale or None, not returns_pair (__call__() cannot be called as"),
        ({"call": fdl.Config(Good)}, "call: expected a callable or None, not Good (Good cannot be called)"),
        ({"call": fdl.Config(returns_pair)}, "call: expected a callable or None, not returns_pair, which returned tuple (tuple cannot be called)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named(arguments, problem):
    [found] = Assembly(fdl.Config(Slots, **arguments)).findings
    assert str(found).startswith(problem)


def test_an_optimizer_in_a_feed_forward_slot_and_a_loss_in_a_norm_slot_are_named():
    cfg = fdl.Config(Block, feed_forward=fdl.Partial(adamw), norm=fdl.Config(Loss))
    with pytest.raises(UsageError) as caught:
        Assembly(cfg).check()
    assert [line.partition("  <-")[0] for line in str(caught.value).splitlines()] == [
        "2 problems:",
        "  feed_forward: expected Module, not adamw",
        "  norm: expected Module, not Loss",
    ]

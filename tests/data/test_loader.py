"""Batches that are read ahead."""

import threading

import pytest
import torch

from nanigpt.data.batch import TokenBatch
from nanigpt.data.loader import Loader

CPU = torch.device("cpu")


def read(first: int) -> list[TokenBatch]:
    return [TokenBatch(torch.tensor([[first]]), torch.tensor([[first + 1]]))]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("loader")]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_batches_come_in_order_whatever_is_read_ahead(prefetch):
    with Loader(prefetch=prefetch).open(read, range(40, 70, 5), CPU) as batches:
        got = [batch.tokens_BL.item() for step in batches for batch in step]
    assert got == [40, 45, 50, 55, 60, 65]
    assert threads() == []


@pytest.mark.parametrize("prefetch", [1, 3])
def test_so_many_steps_are_read_ahead(prefetch):
    """While a step is computed the thread reads `prefetch` steps further, and then waits."""
    asked, reached = [], threading.Event()

    def reading(first: int) -> list[TokenBatch]:
        asked.append(first)
        if first == 2 + prefetch:
            reached.set()
        return read(first)

    with Loader(prefetch=prefetch).open(reading, range(100), CPU) as batches:
        for _ in range(3):
            next(batches)
        assert reached.wait(timeout=10)
    assert asked == list(range(3 + prefetch))


def test_an_error_is_raised_by_the_step_whose_batch_it_was():
    def failing(first: int) -> list[TokenBatch]:
        if first == 2:
            raise OSError("the disk is gone")
        return read(first)

    with (
        pytest.raises(OSError, match="the disk is gone"),
        Loader(prefetch=4).open(failing, range(5), CPU) as batches,
    ):
        assert next(batches)[0].tokens_BL.item() == 0
        assert next(batches)[0].tokens_BL.item() == 1
        next(batches)
    assert threads() == []


def test_an_interrupted_step_leaves_no_thread():
    with (
        pytest.raises(KeyboardInterrupt),
        Loader(prefetch=2).open(read, range(1000), CPU) as batches,
    ):
        next(batches)
        assert threads() != []
        raise KeyboardInterrupt
    assert threads() == []


def test_negative_prefetch_is_refused():
    with pytest.raises(ValueError, match="prefetch=-1: expected 0 or more"):
        Loader(prefetch=-1)

"""Reference cycles are collected when they should be."""

import gc
import weakref

import pytest

from nanigpt.training.garbage import GarbageCollection


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def as_before():
    enabled = gc.isenabled()
    yield
    assert gc.isenabled() == enabled
    assert gc.get_freeze_count() == 0


def test_cycles_live_until_the_interval_ends():
    with GarbageCollection(interval=3).scheduled() as after:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        alive = weakref.ref(Cycle())
        for step in (1, 2):
            after(step)
            assert alive() is not None
        after(3)
        assert alive() is None


def test_python_has_it_back_after_an_error():
    with pytest.raises(RuntimeError), GarbageCollection().scheduled():
        raise RuntimeError
    assert gc.isenabled()


def test_none_leaves_it_to_python():
    with GarbageCollection(interval=None).scheduled() as after:
        assert gc.isenabled()
        alive = weakref.ref(Cycle())
        after(50)
        assert alive() is not None


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="interval=0: expected at least 1, or None"):
        GarbageCollection(interval=0)

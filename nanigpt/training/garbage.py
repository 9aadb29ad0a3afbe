"""Schedule Python's garbage collection."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Annotated

from nanigpt.problems import refuse
from nanigpt.tags import Unit


class GarbageCollection:
    """Schedule that collects reference cycles at the same steps on every rank.

    By default Python collects after a certain number of allocations. Each rank reaches that number
    at another time, and all ranks wait for the one that collects. Objects that exist before the
    first step are frozen: the collector does not inspect them again.

    Args:
        interval: Steps between collections; None leaves the time to Python.
    """

    may_change_on_resume = True

    def __init__(self, *, interval: Annotated[int | None, Unit("steps")] = 50):
        if interval is not None and interval < 1:
            refuse("interval", interval, "at least 1, or None")
        self.interval = interval

    @contextlib.contextmanager
    def scheduled(self) -> Iterator[Callable[[int], None]]:
        """Take over from Python; yield a function to call after every step with its number."""
        if self.interval is None:
            yield lambda step: None
            return
        was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            yield self._after
        finally:
            gc.unfreeze()
            if was_enabled:
                gc.enable()

    def _after(self, step: int) -> None:
        if self.interval is not None and step % self.interval == 0:
            gc.collect()

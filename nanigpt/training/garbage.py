"""When Python looks for garbage."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Annotated

from nanigpt.problems import refuse
from nanigpt.tags import Unit


class GarbageCollection:
    """Collects reference cycles at the same steps on every rank.

    Python would collect whenever enough was allocated, which is at another time on each rank, and
    all ranks wait for the one that does. What was there before the first step is frozen: it is not
    looked through again.

    Args:
        interval: steps between collections; None leaves the time to Python.
    """

    may_change_on_resume = True

    def __init__(self, *, interval: Annotated[int | None, Unit("steps")] = 50):
        if interval is not None and interval < 1:
            refuse("interval", interval, "at least 1, or None")
        self.interval = interval

    @contextlib.contextmanager
    def scheduled(self) -> Iterator[Callable[[int], None]]:
        """Take over from Python; yield a function to call after every step, with its number."""
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

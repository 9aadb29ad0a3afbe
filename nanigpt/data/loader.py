"""Read batches ahead of the steps that use them."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated

import torch

from nanigpt.data.batch import Batch
from nanigpt.problems import refuse
from nanigpt.tags import Unit

Read = Callable[[int], list[Batch]]
"""Function from the number of a step's first sample to the step's batches on this rank."""


class Loader:
    """Reader of batches in a thread, while earlier steps are computed.

    Batches are functions of their samples' numbers, so reading ahead changes none of them, and
    there is no state to keep: a resumed run reads on from the first sample that it lacks.

    Args:
        prefetch: Number of steps whose batches are read ahead; 0 reads them when they are used.
            None is 2 if a GPU computes, and 0 on a CPU, where the thread would take time from the
            model.
    """

    may_change_on_resume = True

    def __init__(self, *, prefetch: Annotated[int | None, Unit("steps")] = None):
        if prefetch is not None and prefetch < 0:
            refuse("prefetch", prefetch, "0 or more")
        self.prefetch = prefetch

    @contextlib.contextmanager
    def open(
        self, read: Read, samples: range, device: torch.device
    ) -> Iterator[Iterator[list[Batch]]]:
        """Yield the batches of every step, in order; end the thread on exit.

        If `read` fails, the step that needs its batches raises the error.

        Args:
            samples: Number of each step's first sample.
            device: Device of the batches; for a GPU they are put into page-locked memory, from
                which it copies while the host goes on.
        """
        cuda = device.type == "cuda"
        make: Callable[..., list[Batch]] = functools.partial(_pinned, read) if cuda else read
        prefetch = (2 if cuda else 0) if self.prefetch is None else self.prefetch
        if not prefetch:
            yield map(make, samples)
            return
        # A new thread's GPU is the first one, and pinning memory would set CUDA up on it.
        start = functools.partial(torch.cuda.set_device, device) if cuda else None
        with ThreadPoolExecutor(1, "loader", initializer=start) as thread:
            try:
                yield _ahead(lambda first: thread.submit(make, first), samples, prefetch)
            finally:
                thread.shutdown(cancel_futures=True)


def _ahead(
    submit: Callable[[int], "Future[list[Batch]]"], samples: range, n: int
) -> Iterator[list[Batch]]:
    coming = collections.deque(submit(first) for first in samples[:n])
    for later in range(n, n + len(samples)):
        batches = coming.popleft().result()
        if later < len(samples):
            coming.append(submit(samples[later]))
        yield batches


def _pinned(read: Read, first: int) -> list[Batch]:
    return [batch.pinned() for batch in read(first)]

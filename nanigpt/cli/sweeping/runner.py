"""The loop that runs the trials of a sweep until none is left."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanigpt.cli.sweeping.directory import (
    DONE,
    FAILED,
    UNFINISHED,
    WAITING,
    SweepDirectory,
    Trial,
    directives,
)
from nanigpt.cli.sweeping.pool import Pool
from nanigpt.errors import UnknownName

_POLL = 0.2  # seconds
_LOOK = 1.0  # seconds between looks at the metrics of a running trial


class Runner:
    """A loop that starts trials as others end, and prints their results."""

    def __init__(self, directory: SweepDirectory, pool: Pool):
        self._directory = directory
        self._pool = pool
        self._started: dict[str, float] = {}

    def run(
        self,
        next_trial: Callable[[], Trial | None],
        is_hopeless: Callable[[Trial], bool] | None = None,
    ) -> None:
        """Run the trials that `next_trial` returns, until it returns None.

        Args:
            next_trial: Function that returns the next trial.
            is_hopeless: Function that is called now and then for each running trial. If it returns
                true, the trial ends early.

        Raises:
            UsageError: The metrics of a finished trial lack the objective.
        """
        running: dict[str, Trial] = {}
        pruned: set[str] = set()
        looked = time.monotonic()
        with _stoppable():
            try:
                while True:
                    while self._pool.has_room and (trial := next_trial()) is not None:
                        running[trial.name] = trial
                        self._start(trial)
                    if not running:
                        return
                    time.sleep(_POLL)
                    for name, exit_status in self._pool.ended():
                        trial = running.pop(name)
                        self._finish(trial, exit_status, pruned=name in pruned)
                    if is_hopeless is not None and time.monotonic() - looked > _LOOK:
                        looked = time.monotonic()
                        for name in running.keys() - pruned:
                            if is_hopeless(running[name]):
                                self._pool.end(name)
                                pruned.add(name)
            except (KeyboardInterrupt, SystemExit):
                print("stopping; the same command continues from here", flush=True)
                raise
            finally:
                self._pool.close()

    def _start(self, trial: Trial) -> None:
        resumed = self._directory.status(trial) == UNFINISHED
        _say("resumes" if resumed else "starts", trial)
        self._started[trial.name] = time.monotonic()
        run = self._directory.run(trial).path
        given = directives(self._directory.base, trial.edits)
        self._pool.start(trial.name, given, run, self._directory.log(trial))

    def _finish(self, trial: Trial, exit_status: int, *, pruned: bool) -> None:
        status = self._directory.finish(trial, exit_status=exit_status, pruned=pruned)
        if status == FAILED:
            _say(status, trial, self._directory.error(trial), str(self._directory.log(trial)))
            return
        rows = self._directory.rows(trial)
        objective = self._directory.objective
        name, value = objective.name, objective.value(self._directory.curve(trial))
        if status == DONE and value is None:
            known = dict.fromkeys(key for row in rows for key in row)
            raise UnknownName(f"--objective={name}: not among the metrics", name, known)
        seconds = time.monotonic() - self._started[trial.name]
        result = f"{objective.text} {math.nan if value is None else value:.4f}"
        _say(status, trial, result, f"step {rows[-1]['step']}/{trial.steps}", f"{seconds:.0f} s")


def to_run(directory: SweepDirectory, trials: list[Trial], *, retry: bool) -> list[Trial]:
    """Return the trials that have not ended, with started ones first.

    Args:
        directory: The sweep.
        trials: The trials to choose from.
        retry: Run failed trials again.
    """
    for trial in trials:
        if retry and directory.status(trial) == FAILED:
            directory.forget_failure(trial)
    status = {trial.name: directory.status(trial) for trial in trials}
    return [t for wanted in (UNFINISHED, WAITING) for t in trials if status[t.name] == wanted]


def _say(what: str, trial: Trial, *details: str) -> None:
    print("  ".join([f"{what:<8}", trial.name, *details]), flush=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM end this process as Ctrl-C does, after its children."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

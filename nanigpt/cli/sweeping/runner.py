"""The loop that runs the trials of a sweep until none is left."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanigpt.cli.sweeping.directory import (
    DIVERGED,
    DONE,
    FAILED,
    PRUNED,
    UNFINISHED,
    WAITING,
    SweepDirectory,
    Trial,
    compose_trial,
)
from nanigpt.cli.sweeping.pool import Pool
from nanigpt.cli.sweeping.tpe import Observation, Search
from nanigpt.errors import UnknownName, UsageError

_POLL = 0.2  # seconds
_LOOK = 1.0  # seconds between looks at the metrics of a running trial
_ATTEMPTS = 20  # suggestions in a row without a new trial, after which the space is used up

_STATES = {DONE: "complete", DIVERGED: "complete", PRUNED: "pruned", FAILED: "fail"}


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
        directives = [*self._directory.base, *trial.edits]
        run = self._directory.run(trial).path
        self._pool.start(trial.name, directives, run, self._directory.log(trial))

    def _finish(self, trial: Trial, exit_status: int, *, pruned: bool) -> None:
        status = self._directory.finish(trial, exit_status=exit_status, pruned=pruned)
        if status == FAILED:
            _say(status, trial, self._directory.error(trial), str(self._directory.log(trial)))
            return
        rows = self._directory.rows(trial)
        name = self._directory.settings["objective"]
        value = self._directory.objective(trial)
        if status == DONE and value is None:
            known = dict.fromkeys(key for row in rows for key in row)
            raise UnknownName(f"--objective={name}: not among the metrics", name, known)
        seconds = time.monotonic() - self._started[trial.name]
        result = f"{name} {math.nan if value is None else value:.4f}"
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


class TpeTrials:
    """Trials that a search suggests one by one, up to a total number.

    Args:
        directory: The sweep.
        search: The search.
        n: Total number of trials.
        retry: Run failed trials again.
    """

    def __init__(self, directory: SweepDirectory, search: Search, *, n: int, retry: bool):
        self._directory = directory
        self._search = search
        self._n = n
        self._mine = [t for t in directory.trials if t.method == "tpe" and search.covers(t.values)]
        self._unfinished = to_run(directory, self._mine, retry=retry)
        self._refused: list[Observation] = []
        self._ended: dict[str, Observation] = {}  # read once

    @property
    def trials(self) -> list[Trial]:
        """All trials of the search so far."""
        return self._mine

    @property
    def ended(self) -> list[Trial]:
        """The trials that had ended when this object was made, and those that it suggested."""
        return [trial for trial in self._mine if trial not in self._unfinished]

    def next(self) -> Trial | None:
        """Return a trial that a killed search left, or a new one, or None if there are enough."""
        if self._unfinished:
            return self._unfinished.pop(0)
        if len(self._mine) >= self._n:
            return None
        known = {trial.fingerprint for trial in self._directory.trials}
        for attempt in range(_ATTEMPTS):
            values = self._search.suggest(self._observations(), attempt=attempt)
            try:
                trial = compose_trial(self._directory.base, values, method="tpe")
            except UsageError as error:
                print(f"refused  {values}: {error}", flush=True)
                self._refused.append(Observation(values, state="fail"))
                continue
            if trial.fingerprint not in known:
                self._mine.append(self._directory.add(trial))
                return trial
        print(f"{_ATTEMPTS} suggestions in a row gave no new trial: the search ends", flush=True)
        self._n = len(self._mine)
        return None

    def is_hopeless(self, trial: Trial) -> bool:
        """Return whether the search gives a running trial up."""
        others = [o for o in self._observations() if o.values != trial.values]
        return self._search.is_hopeless(others, self._observation(trial))

    def _observations(self) -> list[Observation]:
        trials = self._directory.trials
        seen = [self._observation(t) for t in trials if self._search.covers(t.values)]
        return [*seen, *self._refused]

    def _observation(self, trial: Trial) -> Observation:
        if trial.name in self._ended:
            return self._ended[trial.name]
        name = self._directory.settings["objective"]
        curve = self._directory.curve(trial, name)
        state = _STATES.get(self._directory.status(trial), "running")
        observation = Observation(trial.values, curve, state)
        if state != "running":
            self._ended[trial.name] = observation
        return observation


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

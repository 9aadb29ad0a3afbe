"""The trials of a TPE search, which come one by one."""

from nanigpt.cli.sweeping.directory import DIVERGED, DONE, FAILED, PRUNED, SweepDirectory, Trial
from nanigpt.cli.sweeping.plan import Plan
from nanigpt.cli.sweeping.runner import to_run
from nanigpt.cli.sweeping.tpe import Observation, Search
from nanigpt.errors import UsageError

_ATTEMPTS = 20  # suggestions in a row without a new trial, after which the space is used up

_STATES = {DONE: "complete", DIVERGED: "complete", PRUNED: "pruned", FAILED: "fail"}


class TpeTrials:
    """Trials that a search suggests one by one, up to a total number.

    Args:
        directory: The sweep.
        plan: What the sweep varies, and the total number of trials.
        search: The search.
        retry: Run failed trials again.
    """

    def __init__(self, directory: SweepDirectory, plan: Plan, search: Search, *, retry: bool):
        self._directory = directory
        self._plan = plan
        self._search = search
        self._n = plan.n or 0
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
            point = self._search.suggest(self._observations(), attempt=attempt)
            try:
                trial = self._plan.trial(point)
            except UsageError as error:
                print(f"refused  {point}: {error}", flush=True)
                values = {key: str(value) for key, value in point.items()}
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
        return self._search.is_hopeless(others, self._observation(trial), steps=trial.steps)

    def _observations(self) -> list[Observation]:
        trials = self._directory.trials
        seen = [self._observation(t) for t in trials if self._search.covers(t.values)]
        return [*seen, *self._refused]

    def _observation(self, trial: Trial) -> Observation:
        if trial.name in self._ended:
            return self._ended[trial.name]
        curve = self._directory.curve(trial)
        state = _STATES.get(self._directory.status(trial), "running")
        observation = Observation(trial.values, curve, state)
        if state != "running":
            self._ended[trial.name] = observation
        return observation

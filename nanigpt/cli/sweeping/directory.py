"""The files of a sweep: one file with its trials, and a run directory for each trial."""

import json
import math
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanigpt.cli.sweeping.objective import Objective
from nanigpt.config.compose.axes import BASES
from nanigpt.config.compose.flag import compose
from nanigpt.config.record.file import differences, dump, load
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.errors import UsageError
from nanigpt.files import plain_name, write_atomically
from nanigpt.training.run_directory import RunDirectory
from nanigpt.words import listed

# The statuses of trials, as the table sorts them.
DONE, PRUNED, DIVERGED, FAILED, UNFINISHED, WAITING = STATUSES = (
    "done",
    "pruned",
    "diverged",
    "failed",
    "unfinished",
    "waiting",
)


@dataclass(frozen=True)
class Trial:
    """One config of a sweep.

    Attributes:
        name: Name of its run directory.
        fingerprint: Fingerprint of its config, which differs from that of every other trial.
        edits: Directives that follow those of the base. The first may be a base.
        steps: Last step of its run.
        method: The method that suggested it first: `grid`, `random` or `tpe`.
        values: The text of the value on each axis, by the axis's key.
        flops: FLOPs of a step, or None if they are unknown.
    """

    name: str
    fingerprint: str
    edits: tuple[str, ...]
    steps: int
    method: str
    values: dict[str, str] = field(default_factory=dict)
    flops: float | None = None

    def __post_init__(self) -> None:
        plain_name(self.name)

    @classmethod
    def load(cls, recorded: dict[str, Any]) -> "Trial":
        """Return a trial of sweep.json. Records of version 0.1 have no `values`."""
        edits = tuple(recorded["edits"])
        values = {key: text for key, _, text in (edit.partition("=") for edit in edits)}
        return cls(**{"values": values, **recorded, "edits": edits})


def has_base(directives: Sequence[str]) -> bool:
    """Return whether directives begin with a base."""
    return bool(directives) and directives[0].partition(":")[0] in BASES


def directives(base: Sequence[str], edits: Sequence[str]) -> list[str]:
    """Return all directives of a trial: its own base comes before the edits of all trials."""
    own = 1 if has_base(edits) else 0
    return [*edits[:own], *base, *edits[own:]]


class SweepDirectory:
    """The files of a sweep, its trials, and their statuses.

    config.json           the config of the base, which loads back equal, unless bases are an axis
    sweep.json            the settings, and every trial in the order of its index
    NAME-FINGERPRINT/     a run directory for each trial, with two more files:
        log.txt           the output of its process
        result.json       its status, after it has ended
    results.csv           the table of results
    sweep.png             the picture of results

    Args:
        path: The directory, which may be new.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.settings: dict[str, Any] = {}
        self.trials: list[Trial] = []
        if self._record.exists():
            recorded = json.loads(self._record.read_text())
            self.trials = [Trial.load(trial) for trial in recorded.pop("trials")]
            self.settings = recorded

    @property
    def _record(self) -> Path:
        return self.path / "sweep.json"

    @property
    def base(self) -> list[str]:
        """The directives that all trials have."""
        return self.settings["base"]

    @property
    def objective(self) -> Objective:
        """The number that trials are compared by."""
        given = {"name": "objective", "goal": "goal", "over": "objective_over"}
        known = {k: self.settings[name] for k, name in given.items() if name in self.settings}
        return Objective(**known)

    def claim(self, settings: dict[str, Any]) -> None:
        """Record the settings of the sweep; axes, values and method may change between calls.

        Raises:
            UsageError: The directory has a sweep of another base.
        """
        base, recorded = settings["base"], self.path / "config.json"
        cfg = compose(base) if has_base(base) else None
        if cfg is None or not recorded.exists():
            old = self.settings.get("base", base)
            changed = [] if old == base else [f"{' '.join(old)} -> {' '.join(base)}"]
        else:
            before = load(recorded)
            same = fingerprint(before) == fingerprint(cfg)
            changed = [] if same else [str(change) for change in differences(before, cfg)]
        if changed:
            raise UsageError(
                f"--dir={self.path} holds a sweep of another base: "
                f"{listed(changed, 5, separator='; ')}; "
                "give this one a directory of its own with --dir=DIR"
            )
        if cfg is not None:
            write_atomically(recorded, dump(cfg))
        self.settings = settings
        self._save()

    def add(self, trial: Trial) -> Trial:
        """Record a trial, unless one with the same config exists; return the recorded one."""
        same = next((t for t in self.trials if t.fingerprint == trial.fingerprint), None)
        if same is None:
            self.trials.append(trial)
            self._save()
        return same or trial

    def _save(self) -> None:
        record = {**self.settings, "trials": [asdict(trial) for trial in self.trials]}
        write_atomically(self._record, json.dumps(record, indent=1) + "\n")

    def run(self, trial: Trial) -> RunDirectory:
        """Return the run directory of a trial."""
        return RunDirectory(self.path / trial.name)

    def log(self, trial: Trial) -> Path:
        """Return the file with the output of a trial's process."""
        return self.path / trial.name / "log.txt"

    def _result(self, trial: Trial) -> Path:
        return self.path / trial.name / "result.json"

    def status(self, trial: Trial) -> str:
        """Return the status of a trial, one of `STATUSES`."""
        if self._result(trial).exists():
            return json.loads(self._result(trial).read_text())["status"]
        return UNFINISHED if self.run(trial).started else WAITING

    def error(self, trial: Trial) -> str:
        """Return the reason why a trial failed: the last line of its output, or a signal."""
        return json.loads(self._result(trial).read_text())["error"]

    def finish(self, trial: Trial, *, exit_status: int, pruned: bool) -> str:
        """Record the end of a trial's process, and return the trial's status."""
        rows = self.rows(trial)
        step = rows[-1]["step"] if rows else 0
        result: dict[str, Any] = {"status": FAILED, "exit_status": exit_status, "step": step}
        if (pruned or exit_status >= 0) and rows and self._diverged(rows):
            result["status"] = DIVERGED  # also if the run stopped itself for this reason
        elif pruned or (exit_status == 0 and step >= trial.steps):
            result["status"] = PRUNED if step < trial.steps else DONE
        elif exit_status < 0:
            result["error"] = f"killed by {signal.Signals(-exit_status).name}"
        else:
            lines = self.log(trial).read_text(errors="replace").split("\n")
            result["error"] = next((line for line in reversed(lines) if line.strip()), "")
        write_atomically(self._result(trial), json.dumps(result) + "\n")
        return result["status"]

    def _diverged(self, rows: list[dict[str, float]]) -> bool:
        """Return whether the last loss, or the last value of the objective, is not finite."""
        name = self.objective.name
        last = [rows[-1].get("loss", 0.0), *[row[name] for row in rows if name in row][-1:]]
        return not all(map(math.isfinite, last))

    def forget_failure(self, trial: Trial) -> None:
        """Allow a failed trial to run again."""
        self._result(trial).unlink()

    def rows(self, trial: Trial, having: str = "step") -> list[dict[str, float]]:
        """Return the rows of a trial's metrics so far that have a number with this name."""
        path = self.run(trial).metrics
        if not path.exists():
            return []
        *lines, _ = path.read_text().split("\n")  # the last may be incomplete
        return [json.loads(line) for line in lines if f'"{having}"' in line]

    def curve(self, trial: Trial) -> dict[int, float]:
        """Return a trial's values of the objective by step."""
        name = self.objective.name
        return {int(row["step"]): row[name] for row in self.rows(trial, having=name)}

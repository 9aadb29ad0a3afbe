"""The files of a sweep: one file with its trials, and a run directory for each trial."""

import json
import math
import re
import signal
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nanigpt.cli.trainer import checked_trainer
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
        edits: Directives that follow those of the base.
        steps: Last step of its run.
        method: The method that suggested it first: `grid`, `random` or `tpe`.
    """

    name: str
    fingerprint: str
    edits: tuple[str, ...]
    steps: int
    method: str

    def __post_init__(self) -> None:
        plain_name(self.name)

    @cached_property
    def values(self) -> dict[str, str]:
        """The text of the value of each `tag:TAG` or `set:PATH`."""
        return {key: text for key, _, text in (edit.partition("=") for edit in self.edits)}


def compose_trial(base: list[str], values: dict[str, Any], *, method: str) -> Trial:
    """Return the trial of a point.

    Args:
        base: Directives of the base.
        values: Value of each `tag:TAG` or `set:PATH`.
        method: The method that suggested the point.

    Raises:
        UsageError: The config cannot be composed or built.
    """
    edits = tuple(f"{key}={value}" for key, value in values.items())
    cfg = compose([*base, *edits])
    trainer = checked_trainer(cfg)
    identity = fingerprint(cfg)
    # A name without characters that are special to a shell or a file system.
    readable = ",".join(edit.partition(":")[2] for edit in edits).replace("]=", "=")
    readable = re.sub(r"[^\w=,+.-]+", ".", readable)[:120].strip(".")
    name = f"{readable}-{identity[:8]}"
    return Trial(name, identity, edits, trainer.steps, method)


class SweepDirectory:
    """The files of a sweep, its trials, and their statuses.

    config.json           the config of the base, which loads back equal
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
            self.trials = [
                Trial(**{**t, "edits": tuple(t["edits"])}) for t in recorded.pop("trials")
            ]
            self.settings = recorded

    @property
    def _record(self) -> Path:
        return self.path / "sweep.json"

    @property
    def base(self) -> list[str]:
        """The directives that precede those of each trial."""
        return self.settings["base"]

    def claim(self, settings: dict[str, Any]) -> None:
        """Record the settings of the sweep; axes, values and method may change between calls.

        Raises:
            UsageError: The directory has a sweep of another base.
        """
        cfg = compose(settings["base"])
        recorded = self.path / "config.json"
        if recorded.exists():
            old = load(recorded)
            if fingerprint(old) != fingerprint(cfg):
                changed = differences(old, cfg)
                raise UsageError(
                    f"--dir={self.path} holds a sweep of another base: "
                    f"{listed(changed, 5, separator='; ')}; "
                    "give this one a directory of its own with --dir=DIR"
                )
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
        if pruned or (exit_status == 0 and step >= trial.steps):
            finite = math.isfinite(rows[-1]["loss"])
            early = PRUNED if step < trial.steps else DONE
            result["status"] = early if finite else DIVERGED
        elif exit_status < 0:
            result["error"] = f"killed by {signal.Signals(-exit_status).name}"
        else:
            lines = self.log(trial).read_text(errors="replace").split("\n")
            result["error"] = next((line for line in reversed(lines) if line.strip()), "")
        write_atomically(self._result(trial), json.dumps(result) + "\n")
        return result["status"]

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

    def curve(self, trial: Trial, name: str) -> dict[int, float]:
        """Return a trial's values of one metric by step."""
        return {int(row["step"]): row[name] for row in self.rows(trial, having=name)}

    def objective(self, trial: Trial) -> float | None:
        """Return a trial's newest value of the objective, or None if there is none."""
        name = self.settings["objective"]
        rows = self.rows(trial, having=name)
        return rows[-1][name] if rows else None

"""Everything of a sweep on disk: its trials in one file, and a run directory for each."""

import json
import math
import re
import signal
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nanigpt.cli.trainer import checked_trainer
from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.flag import compose
from nanigpt.config.record import differences, dump, load
from nanigpt.errors import UsageError
from nanigpt.files import write_atomically
from nanigpt.training.run_directory import RunDirectory

# What became of a trial, as the table sorts it.
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
    """One config of a sweep; its content fingerprint is what tells it from others.

    Attributes:
        name: of its run directory.
        edits: the directives behind the base's.
        steps: the last step of its run.
        method: `grid`, `random` or `tpe`: who asked for it first.
    """

    name: str
    fingerprint: str
    edits: tuple[str, ...]
    steps: int
    method: str

    @cached_property
    def values(self) -> dict[str, str]:
        """The text behind each `tag:TAG` or `set:PATH`."""
        return {key: text for key, _, text in (edit.partition("=") for edit in self.edits)}


def compose_trial(base: list[str], values: dict[str, Any], *, method: str) -> Trial:
    """The trial of a point.

    Raises:
        UsageError: its config cannot be composed or built.
    """
    edits = tuple(f"{key}={value}" for key, value in values.items())
    cfg = compose([*base, *edits])
    trainer = checked_trainer(cfg)
    identity = fingerprint(cfg)
    # A name that no shell and no file system minds.
    readable = ",".join(edit.partition(":")[2] for edit in edits).replace("]=", "=")
    readable = re.sub(r"[^\w=,+.-]+", ".", readable)[:120].strip(".")
    name = f"{readable}-{identity[:8]}"
    return Trial(name, identity, edits, trainer.steps, method)


class SweepDirectory:
    """Names of the files of a sweep, its trials, and what became of them.

    config.json           the base, loads back equal
    sweep.json            how it was asked for, and every trial in the order of their indices
    NAME-FINGERPRINT/     a run directory for each trial; besides a run's own files there are
        log.txt           what its process printed
        result.json       how it ended, if it did
    results.csv, sweep.png
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
        """The directives that come before those of each trial."""
        return self.settings["base"]

    def claim(self, settings: dict[str, Any]) -> None:
        """Records how the sweep is asked for; axes, values and method may change between calls.

        Raises:
            UsageError: a sweep of another base is there.
        """
        cfg = compose(settings["base"])
        recorded = self.path / "config.json"
        if recorded.exists():
            old = load(recorded)
            if fingerprint(old) != fingerprint(cfg):
                changed = differences(old, cfg)
                some = "; ".join(changed[:5]) + ("; ..." if changed[5:] else "")
                raise UsageError(
                    f"--dir={self.path} holds a sweep of another base: {some}; "
                    "give this one a directory of its own with --dir=DIR"
                )
        write_atomically(recorded, dump(cfg))
        self.settings = settings
        self._save()

    def add(self, trial: Trial) -> Trial:
        """Records a trial, unless one of the same config is there; returns that which is."""
        same = next((t for t in self.trials if t.fingerprint == trial.fingerprint), None)
        if same is None:
            self.trials.append(trial)
            self._save()
        return same or trial

    def _save(self) -> None:
        record = {**self.settings, "trials": [asdict(trial) for trial in self.trials]}
        write_atomically(self._record, json.dumps(record, indent=1) + "\n")

    def run(self, trial: Trial) -> RunDirectory:
        return RunDirectory(self.path / trial.name)

    def log(self, trial: Trial) -> Path:
        return self.path / trial.name / "log.txt"

    def _result(self, trial: Trial) -> Path:
        return self.path / trial.name / "result.json"

    def status(self, trial: Trial) -> str:
        """One of `STATUSES`."""
        if self._result(trial).exists():
            return json.loads(self._result(trial).read_text())["status"]
        return UNFINISHED if self.run(trial).started else WAITING

    def error(self, trial: Trial) -> str:
        """Why a failed trial ended: the last line that it printed, or a signal."""
        return json.loads(self._result(trial).read_text())["error"]

    def finish(self, trial: Trial, *, exit_status: int, pruned: bool) -> str:
        """Records how the process of a trial ended; returns the status."""
        rows = self.rows(trial)
        step = rows[-1]["step"] if rows else 0
        result = {"status": FAILED, "exit_status": exit_status, "step": step}
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
        """Lets a failed trial be run again."""
        self._result(trial).unlink()

    def rows(self, trial: Trial, having: str = "step") -> list[dict[str, float]]:
        """The rows of its metrics so far that have a number of this name."""
        path = self.run(trial).metrics
        if not path.exists():
            return []
        *lines, _ = path.read_text().split("\n")  # the last may be half written
        return [json.loads(line) for line in lines if f'"{having}"' in line]

    def objective(self, trial: Trial) -> float | None:
        """Its newest value of what is optimised; None before there is one."""
        name = self.settings["objective"]
        rows = self.rows(trial, having=name)
        return rows[-1][name] if rows else None

"""What a tracker is, and what it is told of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
"""The numbers of one step by name; `step` is always among them. A few values are lists."""


@dataclass(frozen=True)
class RunInfo:
    """What trackers are told of a run.

    Attributes:
        directory: folder of the run.
        step: steps done before; the next row is that of `step + 1`.
        steps: steps of the whole run.
        config: values of the resolved config by path. Empty where the trainer was built by hand.
        fingerprint: hash of the config, or "".
        command: arguments of the command line.
        losses: names of the task's losses in a row.
        evaluations: names that the evaluations' numbers begin with: `val` for `val_loss`.
        summary: lines about model, data and ranks, to print when training starts.
    """

    directory: Path = Path()
    step: int = 0
    steps: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    command: Sequence[str] = ()
    losses: Sequence[str] = ("loss",)
    evaluations: Sequence[str] = ()
    summary: Sequence[str] = ()


class Tracker(Protocol):
    """Receives the rows of a run. Only the main process calls it.

    It may also have `problems(self, /) -> list[Problem]`, which is called on every rank before
    anything is written, such as to tell that a package is missing.
    """

    def open(self, info: RunInfo, /) -> None:
        """Start to track. Rows of steps after `info.step` are of a run that was killed."""

    def write(self, rows: Sequence[Row], /) -> None:
        """Take the rows of some steps, in their order."""

    def close(self) -> None:
        """Finish. It is called once for every `open`, also where training was interrupted."""

"""Define the interface of trackers, and the facts of a run that they receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
"""The numbers of one step by name; `step` is always among them. A few values are lists."""


@dataclass(frozen=True)
class RunInfo:
    """Facts of a run for trackers.

    Attributes:
        directory: Folder of the run.
        step: Steps done before; the next row belongs to step `step + 1`.
        steps: Steps of the whole run.
        config: Values of the resolved config by path. Empty if the trainer was built by hand.
        fingerprint: Hash of the config, or "".
        command: Arguments of the command line.
        losses: Names of the task's losses in a row.
        evaluations: Prefixes of the evaluations' numbers: `val` for `val_loss`.
        summary: Lines about model, data and ranks, to print when training starts.
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
    """Receiver of a run's rows. Only the main process calls it.

    It may also have `problems(self, /) -> list[Problem]`, which is called before anything is
    written, for example to report that a package is missing.
    """

    def open(self, info: RunInfo, /) -> None:
        """Start to track. Existing rows after `info.step` belong to a run that was killed."""

    def write(self, rows: Sequence[Row], /) -> None:
        """Take the rows of some steps, in their order."""

    def close(self) -> None:
        """Finish. The run calls this once for every `open`, even after an interruption."""

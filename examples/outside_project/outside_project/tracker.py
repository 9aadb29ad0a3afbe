"""A tracker that writes a table."""

import csv
from collections.abc import Sequence
from typing import Any


class CsvTracker:
    """Tracker that writes some numbers of every step into a CSV file in the run's folder.

    Args:
        columns: names of the numbers. One that a step does not have stays empty.
        file: name of the file.
    """

    may_change_on_resume = True

    def __init__(self, *, columns: Sequence[str] = ("step", "loss"), file: str = "metrics.csv"):
        if "step" not in columns:
            raise ValueError(f"columns={columns!r}: expected 'step' among them")
        self.columns = tuple(columns)
        self.file = file

    def open(self, info: Any, /) -> None:
        """Continue after `info.step`. Later rows belong to a run that was killed."""
        path = info.directory / self.file
        kept = []
        if path.exists():
            with open(path, newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if int(row["step"]) <= info.step]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "w", newline="")
        self._writer = csv.DictWriter(self._stream, self.columns, extrasaction="ignore")
        self._writer.writeheader()
        self._writer.writerows(kept)

    def write(self, rows: Sequence[dict[str, Any]], /) -> None:
        self._writer.writerows(rows)
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

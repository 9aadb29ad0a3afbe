"""Write metrics.jsonl, one line for each step."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from nanigpt.files import write_atomically
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trackers.tracker import Row, RunInfo

log = logging.getLogger(__name__)


class JsonLines:
    """Tracker that writes metrics.jsonl into the run's folder. Sweeps and reports read it."""

    def open(self, info: RunInfo, /) -> None:
        path = RunDirectory(info.directory).metrics
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_rows_after(path, info.step)
        self._stream = open(path, "a")

    def write(self, rows: Sequence[Row], /) -> None:
        self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def drop_rows_after(path: Path, step: int) -> None:
    """Keep only the whole rows of `metrics.jsonl` up to `step`."""
    if not path.exists():
        return
    kept, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            # Only the last line may be cut, by a kill while it was written.
            if number < len(lines):
                log.warning("%s: line %d is no row of a step; dropped", path, number)
    write_atomically(path, "".join(kept))

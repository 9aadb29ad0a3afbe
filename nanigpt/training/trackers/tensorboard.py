"""Write TensorBoard events."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from nanigpt.problems import Problem
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trackers.tracker import Row, RunInfo


class TensorBoard:
    """Tracker that writes the numbers of every step as TensorBoard events into the run's folder."""

    def problems(self) -> list[Problem]:
        if importlib.util.find_spec("tensorboard") is not None:
            return []
        fix = "pip install tensorboard, or training without this tracker"
        return [Problem("", ..., "the package tensorboard, which is not installed", fix)]

    def open(self, info: RunInfo, /) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = RunDirectory(info.directory).tensorboard
        writer: Any = SummaryWriter(folder, max_queue=1000, purge_step=info.step + 1)
        self._events = writer

    def write(self, rows: Sequence[Row], /) -> None:
        for row in rows:
            self._events.file_writer.add_summary(_summary(row), row["step"])

    def close(self) -> None:
        self._events.close()


def _summary(row: Row) -> Any:
    """Return the numbers of a step as one event.

    An event for each number costs several times as much: Python computes the file's checksums.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    numbers = {n: x for n, x in row.items() if n != "step" and isinstance(x, int | float)}
    return Summary(value=[Summary.Value(tag=n, simple_value=x) for n, x in numbers.items()])

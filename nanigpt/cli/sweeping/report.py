"""The results of a sweep: a table, a CSV file, and the best trial."""

import csv
import io
import math
import shlex
from dataclasses import dataclass

from nanigpt.cli.sweeping.directory import DONE, FAILED, STATUSES, SweepDirectory, Trial
from nanigpt.cli.table import add_row, new_table, print_table
from nanigpt.config.registry import import_flags
from nanigpt.config.values import parse_value
from nanigpt.errors import UnknownName
from nanigpt.files import write_atomically


@dataclass(frozen=True)
class Row:
    """A trial, its status, and its objective by step."""

    trial: Trial
    status: str
    curve: dict[int, float]

    @property
    def value(self) -> float | None:
        """The newest value of the objective, or None if there is none."""
        return list(self.curve.values())[-1] if self.curve else None

    @property
    def step(self) -> int:
        """The step of that value."""
        return max(self.curve, default=0)


def results(directory: SweepDirectory) -> list[Row]:
    """Return a row for each trial, with the best first, and unfinished trials last.

    Raises:
        UnknownName: Trials are done, but none has a metric with the objective's name.
    """
    name = directory.settings["objective"]
    sign = 1 if directory.settings["goal"] == "min" else -1
    rows = []
    for trial in directory.trials:
        rows.append(Row(trial, directory.status(trial), directory.curve(trial, name)))
    finished = [row for row in rows if row.status == DONE]
    if finished and not any(row.curve for row in finished):
        metrics = directory.rows(finished[0].trial)
        known = dict.fromkeys(key for row in metrics for key in row)
        raise UnknownName(f"--objective={name}: not among the metrics", name, known)

    def order(row: Row) -> tuple[int, bool, float]:
        value = row.value
        if value is None or math.isnan(value):
            return STATUSES.index(row.status), True, 0.0
        return STATUSES.index(row.status), False, sign * value

    return sorted(rows, key=order)


def axes(rows: list[Row]) -> list[str]:
    """Return every `tag:TAG` and `set:PATH` that a trial sets."""
    return list(dict.fromkeys(key for row in rows for key in row.trial.values))


def short(axis: str) -> str:
    """Return the name of an axis without `tag:` or `set:`."""
    return axis.partition(":")[2]


def number(text: str | None) -> float | None:
    """Return a value as a number, or None if it is not a number."""
    try:
        return None if text is None else parse_value(text, float)
    except ValueError:
        return None


def print_results(directory: SweepDirectory, rows: list[Row]) -> None:
    """Print the results as a table."""
    numbers = [*map(short, axes(rows)), directory.settings["objective"], "step"]
    table = new_table([*numbers, "status", "run"], right=numbers)
    for i, row in enumerate(rows):
        cells = [
            *(row.trial.values.get(axis, "") for axis in axes(rows)),
            "" if row.value is None else f"{row.value:.4f}",
            str(row.step or ""),
            row.status,
            str(directory.run(row.trial).path),
        ]
        add_row(table, cells, bold=i == 0 and row.status == DONE)
    print_table(table)


def write_csv(directory: SweepDirectory, rows: list[Row]) -> None:
    """Write the table, at full precision, to results.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    objective = directory.settings["objective"]
    names = map(short, axes(rows))
    writer.writerow([*names, objective, "step", "status", "run", "fingerprint"])
    for row in rows:
        values = [row.trial.values.get(axis, "") for axis in axes(rows)]
        run = directory.run(row.trial).path
        writer.writerow([*values, row.value, row.step, row.status, run, row.trial.fingerprint])
    write_atomically(directory.path / "results.csv", text.getvalue())


def print_conclusion(directory: SweepDirectory, rows: list[Row]) -> None:
    """Print the best trial as flags, whether it is an extreme of the tried values, and failures."""
    if rows and rows[0].status == DONE:
        edits = [f"--config={edit}" for edit in rows[0].trial.edits]
        print(f"best: {shlex.join([*import_flags(), *edits])}")
        for axis, text in rows[0].trial.values.items():
            found = (number(row.trial.values.get(axis)) for row in rows)
            tried = {value for value in found if value is not None}
            ends = {min(tried): "smallest", max(tried): "largest"} if len(tried) > 2 else {}
            best = number(text)
            if best in ends:
                print(f"the best {short(axis)}, {text}, is the {ends[best]} tried: try beyond it")
    for row in rows:
        if row.status == FAILED:
            print(f"failed: {row.trial.name}: {directory.error(row.trial)}")

"""What a sweep found: a table, a CSV file, and the best trial."""

import csv
import io
import sys
from dataclasses import dataclass

from nanigpt.cli.sweeping.directory import DONE, FAILED, STATUSES, SweepDirectory, Trial
from nanigpt.config.values import parse_value
from nanigpt.errors import UnknownName
from nanigpt.files import write_atomically


@dataclass(frozen=True)
class Row:
    """A trial, what became of it, and its objective by step."""

    trial: Trial
    status: str
    curve: dict[int, float]

    @property
    def value(self) -> float | None:
        return list(self.curve.values())[-1] if self.curve else None

    @property
    def step(self) -> int:
        return max(self.curve, default=0)


def results(directory: SweepDirectory) -> list[Row]:
    """Every trial, best first; those that are not done come last.

    Raises:
        UnknownName: trials are done, and none has a metric of the objective's name.
    """
    name = directory.settings["objective"]
    sign = 1 if directory.settings["goal"] == "min" else -1
    rows = []
    for trial in directory.trials:
        curve = {row["step"]: row[name] for row in directory.rows(trial, having=name)}
        rows.append(Row(trial, directory.status(trial), curve))
    finished = [row for row in rows if row.status == DONE]
    if finished and not any(row.curve for row in finished):
        rows = directory.rows(finished[0].trial)
        known = dict.fromkeys(key for row in rows for key in row)
        raise UnknownName(f"--objective={name}: not among the metrics", name, known)

    def order(row: Row) -> tuple:
        comparable = row.value is not None and row.value == row.value  # not NaN
        return STATUSES.index(row.status), not comparable, sign * row.value if comparable else 0

    return sorted(rows, key=order)


def axes(rows: list[Row]) -> list[str]:
    """Every `tag:TAG` and `set:PATH` that a trial sets."""
    return list(dict.fromkeys(key for row in rows for key in row.trial.values))


def short(axis: str) -> str:
    return axis.partition(":")[2]


def number(text: str | None) -> float | None:
    """The number that a value is; None where it is none."""
    try:
        return None if text is None else parse_value(text, float)
    except ValueError:
        return None


def print_table(directory: SweepDirectory, rows: list[Row]) -> None:
    """As wide as it needs to be where it is not read from a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for axis in axes(rows):
        table.add_column(short(axis), justify="right", overflow="fold")
    for name in (directory.settings["objective"], "step"):
        table.add_column(name, justify="right")
    table.add_column("status")
    table.add_column("run", overflow="fold")
    for i, row in enumerate(rows):
        cells = [
            *(row.trial.values.get(axis, "") for axis in axes(rows)),
            "" if row.value is None else f"{row.value:.4f}",
            str(row.step or ""),
            row.status,
            str(directory.run(row.trial).path),
        ]
        best = i == 0 and row.status == DONE
        table.add_row(*map(Text, cells), style="bold" if best else "")
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def write_csv(directory: SweepDirectory, rows: list[Row]) -> None:
    """results.csv: what the table has, at full precision."""
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
    """The best trial as flags, whether it lies on the border of what was tried, and failures."""
    if rows and rows[0].status == DONE:
        edits = " ".join(f"'--config={edit}'" for edit in rows[0].trial.edits)
        print(f"best: {edits}")
        for axis, text in rows[0].trial.values.items():
            tried = {number(row.trial.values.get(axis)) for row in rows} - {None}
            ends = {min(tried): "smallest", max(tried): "largest"} if len(tried) > 2 else {}
            if number(text) in ends:
                end = ends[number(text)]
                print(f"the best {short(axis)}, {text}, is the {end} tried: try beyond it")
    for row in rows:
        if row.status == FAILED:
            print(f"failed: {row.trial.name}: {directory.error(row.trial)}")

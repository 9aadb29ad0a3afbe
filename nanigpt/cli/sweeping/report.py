"""The results of a sweep: a table, a CSV file, and the best trial."""

import csv
import io
import math
import shlex
from dataclasses import dataclass

from nanigpt.cli.sweeping.directory import DIVERGED, DONE, FAILED, STATUSES, SweepDirectory, Trial
from nanigpt.cli.sweeping.objective import Objective
from nanigpt.cli.table import add_row, new_table, print_table
from nanigpt.config.compose.axes import axis_label
from nanigpt.config.registry import import_flags
from nanigpt.config.values import parse_value
from nanigpt.errors import UnknownName
from nanigpt.files import write_atomically


@dataclass(frozen=True)
class Row:
    """A trial, its status, its objective by step, and its cost.

    Attributes:
        trial: The trial.
        status: Its status.
        curve: Objective by step.
        value: The trial's objective, or None if there is no value yet.
        step: Step of that value.
        seconds: Time of all its steps, without evaluations and checkpoints.
        tokens: Number of tokens that it was trained on, or of samples.
        flops: Training FLOPs, or None if they are unknown.
    """

    trial: Trial
    status: str
    curve: dict[int, float]
    value: float | None
    step: int
    seconds: float
    tokens: int
    flops: float | None


def results(directory: SweepDirectory) -> list[Row]:
    """Return a row for each trial, with the best first, and unfinished trials last.

    Raises:
        UnknownName: Trials are done, but none has a metric with the objective's name.
    """
    objective = directory.objective
    rows = [_row(directory, trial, objective) for trial in directory.trials]
    finished = [row for row in rows if row.status == DONE]
    if finished and not any(row.curve for row in finished):
        metrics = directory.rows(finished[0].trial)
        known = dict.fromkeys(key for row in metrics for key in row)
        name = objective.name
        raise UnknownName(f"--objective={name}: not among the metrics", name, known)

    def order(row: Row) -> tuple[int, bool, float]:
        value = row.value
        if value is None or math.isnan(value):
            return STATUSES.index(row.status), True, 0.0
        return STATUSES.index(row.status), False, objective.sign * value

    return sorted(rows, key=order)


def _row(directory: SweepDirectory, trial: Trial, objective: Objective) -> Row:
    metrics = directory.rows(trial)
    curve = {int(m["step"]): m[objective.name] for m in metrics if objective.name in m}
    value, status = objective.value(curve), directory.status(trial)
    if status == DONE and value is not None and not math.isfinite(value):
        status = DIVERGED  # the objective is another one than when the trial ended
    last = metrics[-1] if metrics else {}
    return Row(
        trial,
        status,
        curve,
        value,
        objective.step(curve),
        seconds=sum(m.get("ms_per_step", 0.0) for m in metrics) / 1000,
        tokens=int(last.get("tokens", last.get("samples", 0))),
        flops=None if trial.flops is None else trial.flops * last.get("step", 0),
    )


def axes(rows: list[Row]) -> list[str]:
    """Return the key of every axis on which a trial has a value."""
    return list(dict.fromkeys(key for row in rows for key in row.trial.values))


def labels(keys: list[str]) -> list[str]:
    """Return a heading for each axis: its short name, or the whole key if two have one name."""
    short = [axis_label(key) for key in keys]
    return [key if short.count(name) > 1 else name for key, name in zip(keys, short, strict=True)]


def number(text: str | None) -> float | None:
    """Return a value as a number, or None if it is not a number."""
    try:
        return None if text is None else parse_value(text, float)
    except ValueError:
        return None


def print_results(directory: SweepDirectory, rows: list[Row]) -> None:
    """Print the results as a table."""
    cost = ("seconds", "tokens", "FLOPs")
    numbers = [*labels(axes(rows)), directory.objective.text, "step", *cost]
    table = new_table([*numbers, "status", "run"], right=numbers)
    for i, row in enumerate(rows):
        cells = [
            *(row.trial.values.get(axis, "") for axis in axes(rows)),
            "" if row.value is None else f"{row.value:.4f}",
            str(row.step or ""),
            f"{row.seconds:.1f}" if row.seconds else "",
            f"{row.tokens:,}" if row.tokens else "",
            f"{row.flops:.3g}" if row.flops else "",
            row.status,
            str(directory.run(row.trial).path),
        ]
        add_row(table, cells, bold=i == 0 and row.status == DONE)
    print_table(table)


def write_csv(directory: SweepDirectory, rows: list[Row]) -> None:
    """Write the table, at full precision, to results.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cost = ("seconds", "tokens", "flops")
    objective = directory.objective.text
    headings = [*labels(axes(rows)), objective, "step", *cost, "status", "run", "fingerprint"]
    writer.writerow(headings)
    for row in rows:
        values = [row.trial.values.get(axis, "") for axis in axes(rows)]
        numbers = [row.value, row.step, row.seconds, row.tokens, row.flops]
        run = directory.run(row.trial).path
        writer.writerow([*values, *numbers, row.status, run, row.trial.fingerprint])
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
                name = axis_label(axis)
                print(f"the best {name}, {text}, is the {ends[best]} tried: try beyond it")
    for row in rows:
        if row.status == FAILED:
            print(f"failed: {row.trial.name}: {directory.error(row.trial)}")

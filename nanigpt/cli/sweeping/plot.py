"""The picture sweep.png: the objective along each axis, and the curves of the trials."""

import math
import textwrap
from typing import TYPE_CHECKING, Any, TypeGuard

from nanigpt.cli.sweeping.directory import DIVERGED, DONE, FAILED, PRUNED, SweepDirectory
from nanigpt.cli.sweeping.report import Row, axes, labels, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_LEGEND = 8  # trials that a legend has room for
_LABELS = 6  # lines that all have a label at their end
_DPI = 100
_TICKS = 7  # largest number of values that all have a label on their axis
_CHARACTERS = 42  # of all labels together that fit below a panel
_WIDE = 20  # a range of values this wide is shown on a logarithmic scale
_BEST = "#d1495b"
_PRUNED = "0.65"


def plot(directory: SweepDirectory, rows: list[Row]) -> None:
    """Draw a panel for each axis, one of costs, and one of curves; the best trial is red in all."""
    from matplotlib.figure import Figure

    names = axes(rows)
    shown = [row for row in rows if row.status in (DONE, PRUNED) and _finite(row.value)]
    lost = [row for row in rows if row.status in (DIVERGED, FAILED)]
    costs = {row.trial.flops for row in shown if row.flops}
    n_panels = len(names) + (len(costs) > 1) + 1
    columns = 2 if n_panels == 4 else min(n_panels, _COLUMNS)
    lines = math.ceil(n_panels / columns)
    width = 4.6 * columns + (2 if len(rows) <= _LEGEND else 0)
    figure = Figure(figsize=(width, 3.8 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    colors = _colors(shown)
    for panel, axis, label in zip(panels, names, labels(names), strict=False):
        panel.set_xlabel(label)
        _axis_panel(panel, axis, shown, lost, colors)
    if len(costs) > 1:
        _cost_panel(panels[n_panels - 2], shown, colors)
    _curves(panels[n_panels - 1], shown, colors, names)
    for panel in panels[:n_panels]:
        panel.set_ylabel(directory.objective.text)
        panel.grid(True, color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[n_panels - 1].set_ylabel(directory.objective.name)
    for panel in panels[n_panels:]:
        panel.set_visible(False)
    n_done = sum(row.status == DONE for row in rows)
    figure.suptitle(
        f"{directory.path}: {n_done} of {len(rows)} trials done; red is the best, darker is better",
        fontsize=10,
    )
    figure.savefig(directory.path / "sweep.png", dpi=_DPI, pil_kwargs={"optimize": True})


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _colors(rows: list[Row]) -> dict[str, Any]:
    """Return a color for each trial, by rank; pruned trials are grey."""
    from matplotlib import colormaps

    done = [row for row in rows if row.status == DONE]
    colors: dict[str, Any] = {row.trial.name: _PRUNED for row in rows}
    for i, row in enumerate(done):
        shade = colormaps["viridis"](0.9 * i / max(len(done) - 1, 1))
        colors[row.trial.name] = shade if i else _BEST
    return colors


def _axis_panel(
    panel: "Axes", axis: str, shown: list[Row], lost: list[Row], colors: dict[str, Any]
) -> None:
    """Draw the objective over one axis; lines join trials that differ in nothing else.

    Args:
        panel: Where to draw.
        axis: The axis.
        shown: Trials with a finite objective, best first.
        lost: Trials without one.
        colors: Colors by name of the trial.
    """
    place = _scale(panel, [row.trial.values.get(axis, "(base)") for row in shown + lost])
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in (row for row in shown if row.status == DONE):
        rest = tuple((key, text) for key, text in row.trial.values.items() if key != axis)
        groups.setdefault(rest, []).append(row)
    for rest, group in groups.items():
        joined = sorted((place[row.trial.values.get(axis, "(base)")], _value(row)) for row in group)
        panel.plot(*zip(*joined, strict=True), color="0.8", linewidth=1, zorder=1)
        if 1 < len(groups) <= _LABELS and len(joined) > 1:
            text = ", ".join(value[:20] for _, value in rest)
            beside: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            panel.annotate(text, joined[-1], fontsize=7, color="0.4", **beside)
    limit = _limit([_value(row) for row in shown])
    for row in reversed(shown):  # the best on top
        panel.scatter(
            place[row.trial.values.get(axis, "(base)")],
            min(_value(row), limit),
            s=34,
            marker="o" if _value(row) <= limit else "^",
            color=colors[row.trial.name],
            facecolor="none" if row.status == PRUNED else None,
            zorder=2,
        )
    if any(_value(row) > limit for row in shown):
        panel.set_ylim(top=limit)
    for row in lost:
        at = place[row.trial.values.get(axis, "(base)")]
        top = panel.get_xaxis_transform()
        panel.scatter(at, 1.0, marker="x", color="black", transform=top, clip_on=False)


def _cost_panel(panel: "Axes", shown: list[Row], colors: dict[str, Any]) -> None:
    """Draw the objective over training FLOPs."""
    panel.set_xlabel("training FLOPs")
    panel.set_xscale("log")
    distinct = sorted({row.flops for row in shown if row.flops})
    if len(distinct) <= _TICKS:
        panel.set_xticks(distinct, [f"{flops:.2g}" for flops in distinct])
        panel.set_xticks([], minor=True)
    for row in reversed(shown):
        if row.flops:
            panel.scatter(row.flops, _value(row), s=34, color=colors[row.trial.name])
    limit = _limit([_value(row) for row in shown])
    if math.isfinite(limit):
        panel.set_ylim(top=limit)


def _value(row: Row) -> float:
    assert row.value is not None  # only such rows are shown
    return row.value


def _scale(panel: "Axes", texts: list[str]) -> dict[str, float]:
    """Place the values of an axis: by their numbers, or side by side if one is not a number."""
    distinct = list(dict.fromkeys(texts))
    numbers = [value for text in distinct if _finite(value := number(text))]
    if len(numbers) < len(distinct):
        width = max(_CHARACTERS // len(distinct), 6)
        panel.set_xticks(range(len(distinct)), [textwrap.fill(text, width) for text in distinct])
        panel.set_xlim(-0.5, len(distinct) - 0.5)
        return {text: i for i, text in enumerate(distinct)}
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > _WIDE:
        panel.set_xscale("log")
    if len(numbers) <= _TICKS:
        panel.set_xticks(numbers, distinct)
        panel.set_xticks([], minor=True)
    return dict(zip(distinct, numbers, strict=True))


def _limit(values: list[float]) -> float:
    """Return the limit above which a value is shown at the border, so that others stay visible."""
    if len(values) < 4:
        return math.inf
    best, upper = min(values), sorted(values)[3 * len(values) // 4]
    limit = upper + 2 * (upper - best)
    return limit if best < upper and max(values) > limit else math.inf


def _curves(panel: "Axes", rows: list[Row], colors: dict[str, Any], names: list[str]) -> None:
    panel.set_xlabel("step")
    panel.locator_params(axis="x", integer=True)
    for i, row in reversed(list(enumerate(rows))):
        pruned = row.status == PRUNED
        panel.plot(
            list(row.curve),
            list(row.curve.values()),
            color=colors[row.trial.name],
            linestyle="--" if pruned else "-",
            linewidth=2 if i == 0 and not pruned else 1.2,
            marker="o" if len(row.curve) < 15 else None,
            markersize=3,
            label=", ".join(row.trial.values.get(name, "(base)")[:24] for name in names),
        )
    limit = _limit([value for row in rows for value in row.curve.values() if _finite(value)])
    if math.isfinite(limit):
        panel.set_ylim(top=limit)
    if 0 < len(rows) <= _LEGEND:
        handles, texts = panel.get_legend_handles_labels()
        panel.legend(
            handles[::-1],
            texts[::-1],
            title=", ".join(labels(names)),
            fontsize=7,
            title_fontsize=7,
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )

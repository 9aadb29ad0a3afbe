"""Pictures of a pipeline's timeline: text for a terminal, and SVG for other uses."""

import math
from collections.abc import Iterator
from html import escape
from itertools import groupby

from nanigpt.parallel.schedule import Slot, Timeline

_Color = tuple[int, int, int]
_Colors = tuple[_Color, _Color]

_KINDS = {
    "F": "forward",
    "B": "backward",
    "I": "gradients of inputs",
    "W": "gradients of weights",
}

# Colours of the first and the last stage of a rank. Stages between have a mixture of both.
_SHADES = {
    "F": ((47, 111, 191), (184, 212, 243)),
    "B": ((214, 96, 40), (248, 200, 172)),
    "I": ((222, 158, 8), (252, 228, 168)),
    "W": ((46, 143, 100), (180, 225, 202)),
}
_WHITE, _BLACK = (255, 255, 255), (20, 24, 32)

_MOST_BOXES = 100_000  # in a row
_NARROWEST = 40  # characters
_GAP = " ⋯ "

# SVG, in pixels
_MARGIN, _RANK, _IDLE = 14, 44, 58
_ROW, _BOX = 31, 26
_CHARACTER = 6.6
_SHORTEST_AXIS, _TICKS = 640, 60

_CSS = """
svg:root { color-scheme: light dark; }
.pipeline { font: 11px system-ui, "DejaVu Sans", sans-serif; }
.pipeline .ground { fill: #ffffff; fill: light-dark(#ffffff, #15181d); }
.pipeline .idle { fill: #e9edf2; fill: light-dark(#e9edf2, #262c35); }
.pipeline .ink { fill: #1d2430; fill: light-dark(#1d2430, #d9dfe8); }
.pipeline .faint { fill: #667085; fill: light-dark(#667085, #8b95a5); }
.pipeline .tick { stroke: #dde2ea; stroke: light-dark(#dde2ea, #333a45); }
.pipeline .title { font-size: 14px; font-weight: 600; }
.pipeline .number { text-anchor: middle; }
.pipeline .end { text-anchor: end; }
"""


def summary(timeline: Timeline) -> str:
    """Return the timeline in a line: `1F1B, 4 ranks, 8 microbatches: bubble 27.3%`."""
    timetable = timeline.timetable
    each = timetable.stages_per_rank
    stages = f", {each} stages per rank" if each > 1 else ""
    plural = "es" if timetable.microbatches > 1 else ""
    return (
        f"{timetable.schedule}, {timetable.ranks} ranks{stages}, "
        f"{timetable.microbatches} microbatch{plural}: "
        f"bubble {timeline.bubble:.1%}"
    )


def to_text(timeline: Timeline, *, width: int = 100, color: bool = False) -> str:
    """Draw the timeline as text, with a row for each rank and time to the right.

    A box has the letter of its kind and the number of its microbatch. If the picture is too wide,
    the shortest box has one character. If it is still too wide, the middle is left out. A remark
    then gives the width that shows everything.

    Args:
        timeline: The timeline.
        width: Largest width of a row, in characters.
        color: Mark kinds and stages by background colours, for terminals with 24-bit colours.

    Raises:
        ValueError: The width is below 40.
    """
    if width < _NARROWEST:
        raise ValueError(f"width={width}: expected at least {_NARROWEST} characters")
    labels = [f"rank {rank} " for rank in range(timeline.timetable.ranks)]
    margin = max(map(len, labels))
    room = width - margin
    full = 1 + _digits(timeline)
    boxes = timeline.length / _shortest(timeline)
    cell, remark = full, []
    if _columns(boxes * full) > room:
        cell = 1 if _columns(boxes) <= room else full
        missing = "some numbers are" if cell == 1 else "the middle is"
        remark = [f"{missing} left out; width={_columns(boxes * full) + margin} shows all"]
    rows = [
        _row(blocks, timeline, cell / _shortest(timeline), _columns(boxes * cell), color)
        for _, blocks in _by_rank(timeline)
    ]
    if len(rows[0]) > room:
        head = (room - len(_GAP)) // 2
        tail = room - len(_GAP) - head
        rows = [[*row[:head], (_GAP, None), *row[-tail:]] for row in rows]
    lines = [summary(timeline)]
    for label, row in zip(labels, rows, strict=True):
        runs = groupby(row, key=lambda cell: cell[1])
        text = (_paint("".join(c for c, _ in run), colors) for colors, run in runs)
        lines.append(f"{label:>{margin}}{''.join(text)}")
    joined = cell == full and _at_once(timeline)
    return "\n".join([*lines, *remark, *_legend_text(timeline, color=color, joined=joined)]) + "\n"


def _columns(length: float) -> int:
    return math.floor(length + 0.5)


def _row(
    blocks: list[list[Slot]], timeline: Timeline, scale: float, columns: int, color: bool
) -> list[tuple[str, _Colors | None]]:
    """Return a character for each column, and the colours of its box."""
    row: list[tuple[str, _Colors | None]] = [("·", None)] * columns
    for block in blocks:
        start = _columns(block[0].start * scale)
        n = _columns(block[0].end * scale) - start
        for i, slot in enumerate(block):
            first, end = start + n * i // len(block), start + n * (i + 1) // len(block)
            local, stages = _local(slot, timeline)
            colors = _colors(slot.kind, local, stages) if color else None
            letter, number = slot.kind if local == 0 else slot.kind.lower(), str(slot.microbatch)
            # Colours show the kind too, so the number is more important than the letter.
            alone = [number, letter] if color else [letter, number]
            texts = [f"+{letter}{number}"] * (i > 0) + [f"{letter}{number}", *alone, ""]
            text = next(text for text in texts if len(text) <= end - first)
            row[first:end] = [(c, colors) for c in text.ljust(end - first, "-")]
    return row


def _paint(text: str, colors: _Colors | None) -> str:
    if colors is None:
        return text
    codes = [f"{ground};2;{r};{g};{b}" for ground, (r, g, b) in zip((48, 38), colors, strict=True)]
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def _legend_text(timeline: Timeline, *, color: bool, joined: bool) -> Iterator[str]:
    stages = timeline.timetable.stages_per_rank
    kinds = [
        f"{_paint(kind, _colors(kind, 0, stages) if color else None)} {name}"
        for kind, name in _used(timeline).items()
    ]
    yield f"{', '.join(kinds)}, each with the number of its microbatch; · idle"
    if stages > 1:
        yield "small letters: stages of the rank after its first one"
    if joined:
        yield "joined by +: both at once"
    yield f"length {timeline.length:.4g}; the unit of time is {timeline.unit}"


def to_svg(timeline: Timeline, *, width: int | None = None, heading: bool = True) -> str:
    """Draw the timeline as a single SVG that follows the system's light or dark theme.

    Each rank has a row. Boxes have the colour of their kind, which is paler for later stages of the
    rank, and the number of their microbatch. They show further details on hover. Boxes that share
    a row's height run at once. Grey parts are idle.

    Args:
        timeline: The timeline.
        width: Width of the picture in pixels. The default is its natural width. Numbers without
            enough room are left out.
        heading: Whether the summary is above the picture.

    Raises:
        ValueError: The width leaves too little room.
    """
    timetable, left = timeline.timetable, _left(timeline)
    narrowest = math.ceil(left + _SHORTEST_AXIS / 2 + _IDLE + _MARGIN)
    width = natural_width(timeline) if width is None else width
    if width < narrowest:
        raise ValueError(f"width={width}: expected at least {narrowest} pixels")
    right = width - _MARGIN - _IDLE
    scale = (right - left) / timeline.length
    body, y = [], 0
    if heading:
        body.append(_text(_MARGIN, y + 24, summary(timeline), "ink title"))
        y += 32
    legend, legend_width = _legend(timeline, y + 8)
    body.extend(legend)
    y += 44
    body.append(_text(_MARGIN, y, "rank", "faint"))
    body.append(
        _text(_MARGIN + _RANK, y, "stages" if timetable.stages_per_rank > 1 else "stage", "faint")
    )
    body.append(_text(right + _IDLE, y, "idle", "faint end"))
    y += 8
    for (rank, blocks), idle in zip(_by_rank(timeline), timeline.idle, strict=True):
        middle = y + _BOX / 2 + 4
        body.append('<g class="rank">')
        body.append(_text(_MARGIN, middle, str(rank), "ink"))
        body.append(_text(_MARGIN + _RANK, middle, _stages(timetable.placement[rank]), "faint"))
        body.append(_text(right + _IDLE, middle, f"{idle:.1%}", "ink end"))
        body.append(_rect(left, y, right - left, _BOX, 'class="idle"'))
        for block in blocks:
            body.extend(_box(block, timeline, left, y, scale))
        body.append("</g>")
        y += _ROW
    body.extend(_axis(timeline, left, y, scale))
    w, h = max(width, legend_width), y + 44
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="pipeline" width="{w}" height="{h}" '
            f'viewBox="0 0 {w} {h}" role="img" aria-label="{escape(summary(timeline))}">',
            f"<style>{_CSS}</style>",
            f'<rect class="ground" width="{w}" height="{h}"/>',
            *body,
            "</svg>\n",
        ]
    )


def natural_width(timeline: Timeline) -> int:
    """Return the width in pixels at which the shortest box has room for its number."""
    label = _digits(timeline) * _CHARACTER + 7
    axis = max(timeline.length / _shortest(timeline) * label, _SHORTEST_AXIS)
    return math.ceil(_left(timeline) + axis + _IDLE + _MARGIN)


def _left(timeline: Timeline) -> float:
    """Return the x position at which the axis begins."""
    columns = max(len("stages"), *(len(_stages(s)) for s in timeline.timetable.placement))
    return _MARGIN + _RANK + columns * _CHARACTER + _MARGIN


def _stages(stages: list[int]) -> str:
    return ", ".join(map(str, stages))


def _box(
    block: list[Slot], timeline: Timeline, left: float, y: float, scale: float
) -> Iterator[str]:
    """Yield the boxes of slots of the same time, one below the other."""
    height = _BOX / len(block)
    x, span = left + block[0].start * scale, (block[0].end - block[0].start) * scale
    gap = min(1.0, span / 4)
    # Boxes of the same size either all have numbers, or none has.
    readable = _digits(timeline) * _CHARACTER + 1 < span
    for i, slot in enumerate(block):
        fill, ink = map(_hex, _colors(slot.kind, *_local(slot, timeline)))
        about = (
            f"{_KINDS[slot.kind]}: stage {slot.stage}, microbatch {slot.microbatch}, "
            f"{slot.start:.4g} to {slot.end:.4g}"
        )
        top = y + i * height
        yield f'<g class="slot"><title>{about}</title>'
        yield _rect(x, top, span - gap, height - i * 0.5, f'rx="2" fill="{fill}"')
        if readable:
            number, size = str(slot.microbatch), 11 if len(block) == 1 else 10
            style = f' fill="{ink}" font-size="{size}"'
            yield _text(x + span / 2, top + height / 2 + size * 0.36, number, "number", style)
        yield "</g>"


def _legend(timeline: Timeline, y: float) -> tuple[list[str], int]:
    """Return the legend and its width."""
    x, stages, parts = float(_MARGIN), timeline.timetable.stages_per_rank, []
    entries = [
        (name, [f'fill="{_hex(_colors(kind, local, stages)[0])}"' for local in range(stages)])
        for kind, name in _used(timeline).items()
    ]
    entries.append(("idle", ['class="idle"']))
    for name, swatches in entries:
        for swatch in swatches:
            parts.append(_rect(x, y, 12, 12, f'rx="2" {swatch}'))
            x += 13
        parts.append(_text(x + 5, y + 10, name, "ink"))
        x += 5 + len(name) * _CHARACTER + 14
    notes = ["paler: later stages of the rank"] if stages > 1 else []
    notes += ["one below the other: at once"] if _at_once(timeline) else []
    note = "; ".join(notes)
    if note:
        parts.append(_text(x, y + 10, note, "faint"))
    return parts, math.ceil(x + len(note) * _CHARACTER + _MARGIN)


def _axis(timeline: Timeline, left: float, y: float, scale: float) -> Iterator[str]:
    power = 10.0 ** math.floor(math.log10(_TICKS / scale))
    step = next(power * n for n in (1, 2, 5, 10, 20) if power * n * scale >= _TICKS)
    for i in range(math.floor(timeline.length / step * (1 + 1e-9)) + 1):
        x = round(left + i * step * scale, 2)
        yield f'<line class="tick" x1="{x}" y1="{y}" x2="{x}" y2="{y + 5}"/>'
        yield _text(x, y + 17, f"{i * step:.4g}", "faint number")
    yield _text(left, y + 34, f"time: a unit is {timeline.unit}", "faint")


def _text(x: float, y: float, text: str, css: str, more: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" class="{css}"{more}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, more: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" {more}/>'


def _by_rank(timeline: Timeline) -> Iterator[tuple[int, list[list[Slot]]]]:
    """Yield the slots of each rank, grouped by time."""
    for rank, slots in groupby(timeline.slots, key=lambda slot: slot.rank):
        yield rank, [list(block) for _, block in groupby(slots, key=lambda slot: slot.start)]


def _shortest(timeline: Timeline) -> float:
    """Return the time of the shortest box, or a lower limit if costs differ too much."""
    shortest = min(slot.end - slot.start for slot in timeline.slots)
    return max(shortest, timeline.length / _MOST_BOXES)


def _digits(timeline: Timeline) -> int:
    return len(str(timeline.timetable.microbatches - 1))


def _at_once(timeline: Timeline) -> bool:
    return any(len(block) > 1 for _, blocks in _by_rank(timeline) for block in blocks)


def _used(timeline: Timeline) -> dict[str, str]:
    kinds = {slot.kind for slot in timeline.slots}
    return {kind: name for kind, name in _KINDS.items() if kind in kinds}


def _local(slot: Slot, timeline: Timeline) -> tuple[int, int]:
    """Return the index of a slot's stage among its rank's stages, and their number."""
    stages = timeline.timetable.placement[slot.rank]
    return stages.index(slot.stage), len(stages)


def _colors(kind: str, local: int, stages: int) -> _Colors:
    """Return the colours of a box and of the text on it."""
    part = local / max(stages - 1, 1)
    r, g, b = (round(x + (y - x) * part) for x, y in zip(*_SHADES[kind], strict=True))
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return (r, g, b), _WHITE if luminance < 140 else _BLACK


def _hex(color: _Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)

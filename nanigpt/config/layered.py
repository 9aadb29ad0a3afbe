"""Boxes and edges as SVG without Graphviz: a column for each distance from the root.

The layout is Sugiyama's: layers by the longest path, points where long edges pass through a layer,
an order by the barycenter of the neighbours, and then the positions nearest to the neighbours.
"""

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from nanigpt.config.boxes import Box, Graph

_TITLE, _LINE = 17, 13  # heights of text, in pixels
_WIDE, _NARROW = 8.5, 6.0  # widths of a character
_PADDING = 8
_GAP = 10  # between two boxes of a column
_BEND = 48  # room for an edge between two columns, beside its label
_ROUNDS = 12


@dataclass(eq=False)
class _Point:
    """A box, or a place where a long edge passes through a layer."""

    layer: int
    box: Box | None = None
    width: float = 0.0
    height: float = 4.0
    x: float = 0.0  # of the left side
    right: float = 0.0  # of the column
    y: float = 0.0  # of the middle
    before: list["_Point"] = field(default_factory=list)
    after: list["_Point"] = field(default_factory=list)

    @property
    def top(self) -> float:
        return self.y - self.height / 2


@dataclass(eq=False)
class _Edge:
    """Its points, one a layer, and the height at which it meets the last."""

    points: list[_Point]
    label: str
    end: float = 0.0


def svg(graph: Graph) -> str:
    """The picture of a graph whose first box is the root."""
    points = [_point(box, layer) for box, layer in zip(graph.boxes, _layers(graph), strict=True)]
    edges = [_Edge(_route(points[a], points[b]), text) for (a, b), text in graph.labels().items()]
    columns = _columns(points)
    _order(columns)
    _place_rows(columns)
    _place_columns(columns, edges)
    _place_ends(edges)
    return _draw(points, edges)


def _point(box: Box, layer: int) -> _Point:
    text = max((_NARROW * len(line) for line in box.lines), default=0.0)
    width = max(_WIDE * len(box.title), text) + 2 * _PADDING
    return _Point(layer, box, width, _TITLE + _LINE * len(box.lines) + _PADDING)


def _layers(graph: Graph) -> list[int]:
    """The length of the longest path from the root to each box."""
    before: list[list[int]] = [[] for _ in graph.boxes]
    for source, target in graph.edges:
        before[target].append(source)
    layers: dict[int, int] = {}

    def layer(box: int) -> int:
        if box not in layers:
            layers[box] = max((layer(source) + 1 for source in before[box]), default=0)
        return layers[box]

    return [layer(box) for box in range(len(graph.boxes))]


def _route(source: _Point, target: _Point) -> list[_Point]:
    """The points of an edge, one a layer."""
    route = [source, *(_Point(n) for n in range(source.layer + 1, target.layer)), target]
    for left, right in pairwise(route):
        left.after.append(right)
        right.before.append(left)
    return route


def _columns(points: list[_Point]) -> list[list[_Point]]:
    """The points of each layer, at first in the order of the config."""
    columns: list[list[_Point]] = [[] for _ in range(max(p.layer for p in points) + 1)]
    seen: set[int] = set()

    def visit(point: _Point) -> None:
        if id(point) not in seen:
            seen.add(id(point))
            columns[point.layer].append(point)
            for after in point.after:
                visit(after)

    visit(points[0])
    return columns


def _order(columns: list[list[_Point]]) -> None:
    """Sorts columns by the neighbours' mean rank; keeps the order of the fewest crossings."""
    best, fewest = [list(column) for column in columns], _crossings(columns)
    for turn in range(_ROUNDS):
        forward = turn % 2 == 0
        for column in columns[1:] if forward else columns[-2::-1]:
            rank = {id(point): i for other in columns for i, point in enumerate(other)}
            means = {}
            for i, point in enumerate(column):
                near = point.before if forward else point.after
                means[id(point)] = sum(rank[id(p)] for p in near) / len(near) if near else i
            column.sort(key=lambda point, means=means: means[id(point)])
        crossings = _crossings(columns)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    columns[:] = best


def _crossings(columns: list[list[_Point]]) -> int:
    total = 0
    for left, right in pairwise(columns):
        rank = {id(point): i for i, point in enumerate(right)}
        ends = [i for point in left for i in sorted(rank[id(p)] for p in point.after)]
        total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


def _place_rows(columns: list[list[_Point]]) -> None:
    """Draws every point to the mean of its neighbours, in turn of one side and of the other."""
    for column in columns:
        _pack(column, [0.0] * len(column))
    for turn in range(_ROUNDS):
        backward = turn % 2 == 0
        for column in columns[::-1] if backward else columns:
            wanted = []
            for point in column:
                near = (point.after if backward else point.before) or [point]
                wanted.append(sum(p.y for p in near) / len(near))
            _pack(column, wanted)


def _pack(column: list[_Point], wanted: list[float]) -> None:
    """Sets each y as near to the wanted one as order and gaps allow, in least squares.

    Without the gaps that is isotonic regression: neighbours out of order share their mean.
    """
    offsets = [0.0]
    for above, below in pairwise(column):
        offsets.append(offsets[-1] + (above.height + below.height) / 2 + _GAP)
    pools: list[tuple[float, int]] = []  # the sum, and number, of those that stand together
    for want, offset in zip(wanted, offsets, strict=True):
        total, n = want - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / n:
            total, n = total + pools[-1][0], n + pools.pop()[1]
        pools.append((total, n))
    shared = [total / n for total, n in pools for _ in range(n)]
    for point, y, offset in zip(column, shared, offsets, strict=True):
        point.y = y + offset


def _place_columns(columns: list[list[_Point]], edges: list[_Edge]) -> None:
    """Sets each x; before a column there is room for its longest label."""
    x = 0.0
    for layer, column in enumerate(columns):
        labels = (edge.label for edge in edges if edge.points[-1].layer == layer)
        x += _BEND + max((_NARROW * len(label) for label in labels), default=0.0)
        width = max(point.width for point in column)
        for point in column:
            point.x, point.right = x, x + width
        x += width


def _place_ends(edges: list[_Edge]) -> None:
    """Spreads the edges that meet at one box along its left side."""
    for target in {edge.points[-1] for edge in edges}:
        here = [edge for edge in edges if edge.points[-1] is target]
        here.sort(key=lambda edge: edge.points[-2].y)
        step = min(11.0, (target.height - _PADDING) / len(here))
        for i, edge in enumerate(here):
            edge.end = target.y + step * (i - (len(here) - 1) / 2)


def _draw(points: list[_Point], edges: list[_Edge]) -> str:
    drawn = [*points, *(point for edge in edges for point in edge.points)]
    top, left = min(p.top for p in drawn) - 10, min(p.x for p in drawn) - 10
    height = max(p.top + p.height for p in drawn) + 10 - top
    width = max(p.x + p.width for p in drawn) + 10 - left
    # Attributes, not a style sheet: inside a page that would reach every other picture.
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
            f' viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}" font-size="10"'
            " font-family=\"system-ui, 'DejaVu Sans', Arial, sans-serif\">",
            '<g fill="none" stroke="#8b95a5">',
            *map(_curve, edges),
            '</g><g fill="#8b95a5">',
            *map(_end, edges),
            '</g><g fill="#1d2430">',
            *map(_box, points),
            "</g></svg>\n",
        ]
    )


def _curve(edge: _Edge) -> str:
    *earlier, last = edge.points
    x, y = earlier[0].x + earlier[0].width, earlier[0].y
    path = f"M{x:.1f} {y:.1f}"
    for left, right in pairwise(edge.points):
        # It leaves its column before it bends, and arrives where its label begins.
        x = left.right
        to_x = right.x - (_NARROW * len(edge.label) + 10 if right is last else 0)
        to_y = edge.end if right is last else right.y
        middle = (x + to_x) / 2
        path += f"H{x:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
        y = to_y
    return f'<path d="{path}H{last.x - 4:.1f}"/>'


def _end(edge: _Edge) -> str:
    x, y = edge.points[-1].x, edge.end
    return (
        f'<path d="M{x:.1f} {y:.1f}l-7 -3v6z"/>'
        f'<text x="{x - 9:.1f}" y="{y - 3:.1f}" text-anchor="end">{escape(edge.label)}</text>'
    )


def _box(point: _Point) -> str:
    box = point.box
    shape = (
        f'width="{point.width:.1f}" height="{point.height:.1f}" rx="6" '
        f'fill="{box.fill}" stroke="{box.line}"'
    )
    behind = f'<rect x="{point.x + 4:.1f}" y="{point.top + 4:.1f}" {shape}/>' if box.many else ""
    x, y = point.x + _PADDING, point.top + _TITLE
    lines = "".join(
        f'<text x="{x:.1f}" y="{y + _LINE * i:.1f}">{escape(line)}</text>'
        for i, line in enumerate(box.lines, start=1)
    )
    return (
        f"<g><title>{escape(box.about)}</title>{behind}"
        f'<rect x="{point.x:.1f}" y="{point.top:.1f}" {shape}/>'
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" font-weight="600">{escape(box.title)}</text>'
        f"{lines}</g>"
    )

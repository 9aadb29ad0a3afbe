"""The DAG of a config as boxes and edges, before anything is drawn.

Equal neighbours of a list are one box; a node that is used many times is one box with many edges.
"""

import colorsys
from dataclasses import dataclass, field

import fiddle as fdl

from nanigpt.config.flatten import head, show_value
from nanigpt.config.view.html import hue
from nanigpt.config.view.outline import Row, outline
from nanigpt.words import counted, listed

_VALUES = 4  # of a box
_LONGEST = 30  # characters of a value
_LABELS = 3  # of an edge


@dataclass
class Box:
    """A node, or equal neighbours of a list.

    Attributes:
        title: what it builds, and how many.
        lines: some of the values that were set.
        about: what hovering tells.
        name: of what it builds; boxes of one name have one colour.
        many: it stands for several nodes.
    """

    title: str
    lines: list[str]
    about: str
    name: str
    many: bool

    @property
    def fill(self) -> str:
        return _color(self.name, lightness=0.92, saturation=0.75)

    @property
    def line(self) -> str:
        return _color(self.name, lightness=0.55, saturation=0.45)


@dataclass
class Graph:
    """Boxes, and arguments by the numbers of the two boxes that they join."""

    boxes: list[Box] = field(default_factory=list)
    edges: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def labels(self) -> dict[tuple[int, int], str]:
        """Return the label of each edge."""
        texts = {}
        for edge, names in self.edges.items():
            texts[edge] = listed(names, _LABELS)
        return texts


def boxes(cfg: fdl.Buildable, *, depth: int | None = None) -> Graph:
    """Return the boxes and edges of a config.

    Args:
        cfg: The config.
        depth: Largest distance of a node from the root; None draws all nodes.
    """
    drawing = _Drawing(depth)
    drawing.draw(outline(cfg), level=0)
    return drawing.finish()


class _Drawing:
    """Collects boxes and edges from an outline."""

    def __init__(self, depth: int | None):
        self._depth = depth
        self._graph = Graph()
        self._numbers: dict[int, int] = {}  # of boxes, by the node's id
        self._references: list[tuple[int, str, Row]] = []

    def draw(self, row: Row, *, level: int) -> int:
        number = self._box(row)
        if level == self._depth:
            below = sum(isinstance(r.value, fdl.Buildable) and not r.first for r in row.rows()) - 1
            if below:
                self._graph.boxes[number].lines.append(f"{counted(below, 'node')} below")
            return number
        for child, name in _nodes(row, row.path):
            if child.first:
                self._references.append((number, name, child))
            else:
                self._join(number, self.draw(child, level=level + 1), name)
        return number

    def finish(self) -> Graph:
        """Join references to their nodes, and draw nodes that were too deep but are referenced."""
        for source, name, row in self._references:
            known = id(row.value) in self._numbers
            self._join(source, self._numbers[id(row.value)] if known else self._box(row), name)
        return self._graph

    def _box(self, row: Row) -> int:
        number = len(self._graph.boxes)
        for value in row.values:
            self._numbers[id(value)] = number
        name = str(head(row.value))
        many = len(row.values) > 1 and row.values[0] is not row.values[1]
        title = f"{name} ×{len(row.values)}" if many else name
        about = row.first[0] if row.first else row.path
        self._graph.boxes.append(Box(title, _values(row.value), about or name, name, many))
        return number

    def _join(self, source: int, target: int, name: str) -> None:
        self._graph.edges.setdefault((source, target), []).append(name)


def _nodes(row: Row, path: str) -> list[tuple[Row, str]]:
    """Rows of the nodes that a node holds, and of which argument each is the value."""
    found = []
    for child in row.children:
        if isinstance(child.value, fdl.Buildable):
            found.append((child, child.path.removeprefix(path).removeprefix(".")))
        else:
            found.extend(_nodes(child, path))
    return found


def _values(node: fdl.Buildable) -> list[str]:
    given = [
        f"{name} = {_short(show_value(value))}"
        for name, value in fdl.ordered_arguments(node).items()
        if not isinstance(value, (fdl.Buildable, list, tuple, dict))
    ]
    return given if len(given) <= _VALUES else [*given[: _VALUES - 1], "…"]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _color(name: str, *, lightness: float, saturation: float) -> str:
    rgb = colorsys.hls_to_rgb(hue(name) / 360, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)

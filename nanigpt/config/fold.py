"""Paths that differ only in an index, written as one path with a slice."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanigpt.config.paths import Element, join

Path = tuple[Element, ...]


class Position(int):
    """The number of a positional argument, which no slice can choose."""


@dataclass(frozen=True)
class _Run:
    """Indices at equal distances; a `slice` cannot be hashed before Python 3.12."""

    start: int
    stop: int
    step: int

    def slice(self) -> slice:
        return slice(self.start, self.stop, self.step if self.step > 1 else None)


def path_text(path: Path) -> str:
    """Write a path as `parse_path` reads it; the root's is empty."""
    text = ""
    for element in path:
        text = join(text, element)
    return text


def fold(paths: Iterable[Path]) -> list[Path]:
    """Write paths that differ in a list's index as paths with slices.

    These match the same elements and no others.
    """
    folded: list[tuple[Any, ...]] = list(dict.fromkeys(paths))
    for position in reversed(range(max(map(len, folded), default=0))):
        indices: dict[Any, list[int]] = {}
        for path in folded:
            at = path[position] if position < len(path) else None
            if type(at) is int and at >= 0:
                indices.setdefault((path[:position], path[position + 1 :]), []).append(at)
            else:
                indices[path, None] = []
        folded = []
        for (before, after), found in indices.items():
            if after is None:
                folded.append(before)
            else:
                folded += [(*before, run, *after) for run in _runs(found)]
    return [tuple(e.slice() if isinstance(e, _Run) else e for e in path) for path in folded]


def _runs(indices: list[int]) -> list[_Run | int]:
    """Cover indices by few runs at equal distances; one alone stays an index."""
    left, runs = sorted(set(indices)), []
    while left:
        start, step, length = _longest(left)
        if length == 2 and step > 1:
            length = 1
        chosen = range(start, start + step * length, step)
        runs.append(_Run(start, chosen[-1] + 1, step) if length > 1 else start)
        taken = set(chosen)
        left = [i for i in left if i not in taken]
    return sorted(runs, key=lambda run: run.start if isinstance(run, _Run) else run)


def _longest(indices: list[int]) -> tuple[int, int, int]:
    """Return start, step and length of the longest run, of equals that of the smallest step."""
    present, best = set(indices), (indices[0], 1, 1)
    for step in range(1, indices[-1] - indices[0] + 1):
        if (indices[-1] - indices[0]) // step + 1 <= best[2]:
            break  # no longer run has this step, or a larger one
        for start in indices:
            if start - step not in present:
                length = 1
                while start + step * length in present:
                    length += 1
                if length > best[2]:
                    best = (start, step, length)
    return best

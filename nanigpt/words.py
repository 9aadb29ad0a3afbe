"""Phrases that many messages share."""

from collections.abc import Iterable, Sequence


def counted(n: int, noun: str) -> str:
    """Return a number and its noun: "1 problem", "2 problems"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def one_of(choices: Iterable[object]) -> str:
    """Return "one of a, b, c", or the only choice alone."""
    names = [str(choice) for choice in choices]
    return f"one of {', '.join(names)}" if names[1:] else "".join(names)


def listed(items: Iterable[object], shown: int, *, separator: str = ", ") -> str:
    """Join the first items into one line: "a, b, c and 4 more"."""
    names = [str(item) for item in items]
    more = f" and {len(names) - shown} more" if names[shown:] else ""
    return separator.join(names[:shown]) + more


def shortened(lines: Sequence[str], shown: int) -> list[str]:
    """Return the first lines, and a last one that counts the rest: "and 4 more"."""
    more = [f"and {len(lines) - shown} more"] if lines[shown:] else []
    return [*lines[:shown], *more]

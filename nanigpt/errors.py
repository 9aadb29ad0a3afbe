"""The exception for mistakes that a user can correct."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in a command line, a config or an input file.

    The message says where, what was given, what was expected and what to do next. The command line
    prints it alone, without a traceback, and exits with status 2.
    """

    def within(self, where: str) -> "UsageError":
        """Put the place of the error before its message, and return the same error."""
        self.args = (f"{where}: {self}",)
        return self


class RankError(UsageError):
    """A mistake that only this process of several meets, so that each must print its own."""


class MisfitError(UsageError):
    """A checkpoint is of another model or optimizer than the config: nothing was trained."""


class ForeignFile(UsageError):
    """A file of another program.

    Attributes:
        advice: the command or the flag that takes such files.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(problem)
        self.advice = advice


class UnknownName(UsageError):
    """A name that is none of those known.

    Attributes:
        problem: what is wrong, without the names that would be right.
        name: what was given.
        near: the known names that are like it, best first.
    """

    def __init__(
        self, problem: str, name: str, known: Iterable[str] = (), *, near: list[str] | None = None
    ):
        """Complete the message with similar names from `known`, unless `near` is given."""
        known = list(known)
        self.problem, self.name = problem, name
        self.near = near or _near(name, known)
        if near is None:
            if self.near:
                problem += f"; did you mean {' or '.join(map(repr, self.near))}?"
            else:
                problem += f"; known: {', '.join(known) or 'none'}"
        super().__init__(problem)


def _near(name: str, known: list[str]) -> list[str]:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    # One word of a longer name is no close match.
    return close or [k for k in known if len(name) > 2 and name.lower() in k.lower()][:3]

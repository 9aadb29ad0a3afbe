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
    """A mistake that only some processes may meet, so that each process prints its own message."""


class MisfitError(UsageError):
    """A checkpoint belongs to another model or optimizer than the config. Nothing was trained."""


class MissingImport(UsageError):
    """A name that a module defines which this command does not import.

    Attributes:
        flag: The flag that imports it.
    """

    def __init__(self, message: str, *, module: str):
        """Complete the message with the flag that imports `module`, a value of `--import`."""
        self.flag = f"--import={module}"
        super().__init__(f"{message}; add {self.flag}")


class ForeignFile(UsageError):
    """A file of another program.

    Attributes:
        advice: the command or the flag that takes such files.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(problem)
        self.advice = advice


class UnknownName(UsageError):
    """A name that is not among the known names.

    Attributes:
        problem: The mistake, without the names that would be right.
        name: The given name.
        near: The known names that resemble it, best first.
    """

    def __init__(
        self, problem: str, name: str, known: Iterable[str] = (), *, near: list[str] | None = None
    ):
        """Complete the message with similar names from `known`, unless `near` is given."""
        known = list(known)
        self.problem, self.name = problem, name
        self.near = close_names(name, known) if near is None else near
        if near is None:
            if self.near:
                problem += f"; did you mean {' or '.join(map(repr, self.near))}?"
            else:
                problem += f"; known: {', '.join(known) or 'none'}"
        super().__init__(problem)


def close_names(name: str, known: list[str]) -> list[str]:
    """Return known names that are like a name, the most similar first."""
    # `batch_size` is meant as `global_batch_size` more often than as a name of similar letters.
    close = [k for k in known if k.endswith(f"_{name}")][:3]
    close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    # One word of a longer name is no close match.
    return close or [k for k in known if len(name) > 2 and name.lower() in k.lower()][:3]

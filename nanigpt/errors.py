"""The one exception that means "the user can mend this"."""


class UsageError(ValueError):
    """A mistake in a command line, a config or an input file.

    The message says where, what was given, what was expected and what to do next. The command line
    prints it alone, without a traceback, and exits with status 2.
    """


class RankError(UsageError):
    """A mistake that only this process of several meets, so that each must print its own."""

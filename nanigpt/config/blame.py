"""What is wrong with a config, traced back to the directives that set it."""

import contextlib
import re
import shlex
from collections.abc import Iterator

import fiddle as fdl
from fiddle import daglish

from nanigpt.config.paths import join
from nanigpt.config.provenance import explain
from nanigpt.errors import UsageError

_ROOT = "the root: "


@contextlib.contextmanager
def blaming(cfg: fdl.Buildable, directives: list[str]) -> Iterator[None]:
    """Adds to an error of a check or a build the directives that set what each problem names, and
    the command that shows who set the rest."""
    try:
        yield
    except UsageError as error:
        ordered = list(_ordered(cfg))
        lines = []
        for line in str(error).split("\n"):
            told = dict.fromkeys(d for path, d in ordered if _names(line.strip(), path))
            lines.append(f"{line}  <- {', '.join(told)}" if told else line)
        show = ["nanigpt", "show", *(f"--config={d}" for d in directives), "--format=flat", "--why"]
        raise UsageError("\n".join([*lines, f"  try: {shlex.join(show)}"])) from error


def _ordered(cfg: fdl.Buildable) -> Iterator[tuple[str, str]]:
    """Paths of the arguments that a directive set, and the directive."""
    for node, path in daglish.iterate(cfg):
        if isinstance(node, fdl.Buildable):
            for name in fdl.ordered_arguments(node):
                origin = explain(node, name)
                if origin.startswith("--config="):
                    where = join(daglish.path_str(path).removeprefix("."), name)
                    yield where, origin.partition(", was ")[0]


def _names(problem: str, path: str) -> bool:
    """Whether a problem is of an argument, or names it as seen from the node that it is of."""
    if problem.startswith((f"{path}: ", f"{path}=")):
        return True
    where, colon, text = problem.removeprefix(_ROOT).partition(": ")
    if problem.startswith(_ROOT):
        where, text = "", f"{where}{colon}{text}"
    elif not path.startswith((f"{where}.", f"{where}[")):
        return False
    seen = path.removeprefix(where).removeprefix(".")
    return seen in text and re.search(rf"(?<![\w.]){re.escape(seen)}\b", text) is not None

"""The command that a launch starts, and ways to print or run it."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import nanigpt
from nanigpt.errors import UsageError

# Sites edit these files. They are not part of the installed package.
CLUSTER = Path(nanigpt.__file__).parents[1] / "tools" / "cluster"


@dataclass(frozen=True)
class Shape:
    """Numbers of nodes, of processes on each, and of restarts after a failure."""

    nodes: int
    nproc_per_node: int
    max_restarts: int

    @property
    def world_size(self) -> int:
        """Number of all processes."""
        return self.nodes * self.nproc_per_node


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and additions to this process's environment."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the command as a line for a shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.arguments)])

    def become(self) -> NoReturn:
        """Replace this process by the command, so that the command gets its signals.

        Raises:
            UsageError: This machine does not have the program.
        """
        program = shutil.which(self.arguments[0])
        if program is None:
            raise UsageError(
                f"launch: no {self.arguments[0]} on this machine; run this on a machine that has "
                "it, or look at the command with --dry_run"
            )
        sys.stdout.flush()
        os.execve(program, self.arguments, os.environ | self.environment)


def cluster_file(name: str) -> Path:
    """Return the path of a file in tools/cluster.

    Raises:
        UsageError: nanigpt was installed without its source tree.
    """
    path = CLUSTER / name
    if not path.exists():
        raise UsageError(
            f"launch: {path} is missing; work in a clone of nanigpt, installed with "
            "pip install --editable"
        )
    return path

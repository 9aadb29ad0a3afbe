"""What is to be started, and how that is shown or done."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import nanigpt
from nanigpt.errors import UsageError

# These files are for a site to edit, and no part of the installed package.
CLUSTER = Path(nanigpt.__file__).parents[1] / "tools" / "cluster"


@dataclass(frozen=True)
class Shape:
    """Nodes, processes on each, and how often all of them are restarted after a failure."""

    nodes: int
    nproc_per_node: int
    max_restarts: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.nproc_per_node


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and what it has in its environment beside this process's."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The command as a line for a shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.arguments)])

    def become(self) -> NoReturn:
        """Turns this process into the command: its signals and its exit status are the command's.

        Raises:
            UsageError: the program is not on this machine.
        """
        program = shutil.which(self.arguments[0])
        if program is None:
            raise UsageError(
                f"launch: no {self.arguments[0]} on this machine; run this where there is one, or "
                "look at the command with --dry_run"
            )
        sys.stdout.flush()
        os.execve(program, self.arguments, os.environ | self.environment)


def cluster_file(name: str) -> Path:
    """A file of tools/cluster.

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

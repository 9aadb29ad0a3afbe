"""Tables of commands, for a terminal or for a pipe. rich is imported when a table is made."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(columns: Sequence[str], *, right: Sequence[str] = ()) -> "Table":
    """Return a table without lines.

    Args:
        columns: Headings.
        right: Headings of the columns that are aligned to the right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def add_row(table: "Table", cells: Sequence[str], *, bold: bool = False) -> None:
    """Add cells as they are, without rich's markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells), style="bold" if bold else "")


def print_table(table: "Table") -> None:
    """Print a table, which is as wide as it needs to be if a terminal does not limit it."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000).print(table)

"""Configs in Jupyter: `%load_ext nanigpt` makes a cell that ends with a config show its tree."""

from typing import TYPE_CHECKING

import fiddle as fdl

from nanigpt.config.diff import diff, lines
from nanigpt.config.graph import svg
from nanigpt.config.html import tree_html
from nanigpt.config.html_diff import diff_html
from nanigpt.config.show import render as render_tree

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import HTML


def register(ipython: "InteractiveShell") -> None:
    """Shows configs as trees: in HTML where the front end can, as text elsewhere."""
    formatters = ipython.display_formatter.formatters
    formatters["text/html"].for_type(fdl.Buildable, tree_html)
    formatters["text/plain"].for_type(
        fdl.Buildable, lambda cfg, printer, cycle: printer.text(render_tree(cfg))
    )


class Diff:
    """What differs between two configs; a notebook shows it side by side.

    Args:
        old, new: the configs, as they are now.
    """

    def __init__(self, old: fdl.Buildable, new: fdl.Buildable):
        self.changes = diff(old, new)

    def __repr__(self) -> str:
        return "\n".join(lines(self.changes)) or "no difference"

    def _repr_html_(self) -> str:
        return diff_html(self.changes)


def graph(cfg: fdl.Buildable, *, depth: int | None = None) -> "HTML":
    """The picture of a config's DAG, in a frame that scrolls.

    Args:
        depth: how far below the root nodes are drawn; None draws all.
    """
    from IPython.display import HTML

    return HTML(f'<div style="overflow: auto; max-height: 90vh">{svg(cfg, depth=depth)}</div>')

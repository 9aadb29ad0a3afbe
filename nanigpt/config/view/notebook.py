"""Configs in Jupyter: `%load_ext nanigpt` makes a cell that ends with a config show its tree."""

import shutil
from html import escape
from typing import TYPE_CHECKING

import fiddle as fdl

from nanigpt.config.view.diff import diff, lines
from nanigpt.config.view.graph import dot, svg
from nanigpt.config.view.html import tree_html
from nanigpt.config.view.html_diff import diff_html
from nanigpt.config.view.show import render as render_tree

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import HTML


def register(ipython: "InteractiveShell") -> None:
    """Show configs as trees, in HTML if the front end can, and otherwise as text."""
    assert ipython.display_formatter is not None
    formatters = ipython.display_formatter.formatters
    formatters["text/html"].for_type(fdl.Buildable, tree_html)
    formatters["text/plain"].for_type(
        fdl.Buildable, lambda cfg, printer, cycle: printer.text(render_tree(cfg))
    )


class Diff:
    """The differences between two configs; a notebook shows them side by side.

    Args:
        old: One config.
        new: The other. Later changes of either have no effect.
    """

    def __init__(self, old: fdl.Buildable, new: fdl.Buildable):
        self.changes = diff(old, new)

    def __repr__(self) -> str:
        return "\n".join(lines(self.changes)) or "no difference"

    def _repr_html_(self) -> str:
        return diff_html(self.changes)


def graph(cfg: fdl.Buildable, *, depth: int | None = None) -> "HTML":
    """Draw a config's DAG, in a frame that scrolls.

    Without Graphviz, the frame shows the picture's source.

    Args:
        cfg: The config.
        depth: Largest distance of a node from the root; None draws all nodes.
    """
    from IPython.display import HTML

    if shutil.which("dot") is None:
        note = "Graphviz is not installed (apt-get install graphviz), so this is its source."
        shown = f"<p>{note}</p><pre>{escape(dot(cfg, depth=depth))}</pre>"
    else:
        shown = svg(cfg, depth=depth)
    return HTML(f'<div style="overflow: auto; max-height: 90vh">{shown}</div>')

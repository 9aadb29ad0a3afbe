"""The DAG of a config as a picture, drawn by Graphviz."""

import shutil
import subprocess
from html import escape

import fiddle as fdl

from nanigpt.config.view.graph_model import Box, boxes
from nanigpt.errors import UsageError

_SECONDS = 60


def dot(cfg: fdl.Buildable, *, depth: int | None = None) -> str:
    """Return the picture in Graphviz's language."""
    drawn = boxes(cfg, depth=depth)
    lines = [
        "digraph {",
        '  graph [rankdir=LR, bgcolor="transparent", nodesep=0.12, ranksep=0.5]',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11,'
        ' fontcolor="#1d2430", margin="0.12,0.05", height=0.3]',
        '  edge [color="#8b95a5", fontcolor="#8b95a5", fontname="Helvetica", fontsize=9,'
        " arrowsize=0.6]",
    ]
    for number, box in enumerate(drawn.boxes):
        lines.append(
            f'  n{number} [label=<{_label(box)}>, fillcolor="{box.fill}", color="{box.line}",'
            f" tooltip={_quote(box.about)}{', peripheries=2' if box.many else ''}]"
        )
    for (source, target), text in drawn.labels().items():
        lines.append(f"  n{source} -> n{target} [label={_quote(text)}]")
    return "\n".join([*lines, "}", ""])


def svg(cfg: fdl.Buildable, *, depth: int | None = None) -> str:
    """Return the picture as SVG.

    Raises:
        UsageError: Graphviz is not installed, or the graph is too large for its `dot`.
    """
    if shutil.which("dot") is None:
        raise UsageError(
            "Graphviz, which draws the graph, is not installed: on Debian, apt-get install graphviz"
        )
    try:
        done = subprocess.run(
            ["dot", "-Tsvg"],
            input=dot(cfg, depth=depth),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"dot did not draw the graph within {_SECONDS} s; draw less of it with depth=3"
        ) from error
    return done.stdout[done.stdout.index("<svg") :]  # without a header, which a page cannot hold


def _label(box: Box) -> str:
    lines = "".join(
        f'<br align="left"/><font point-size="9">{escape(line)}</font>' for line in box.lines
    )
    return f'<b>{escape(box.title)}</b>{lines}<br align="left"/>'


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

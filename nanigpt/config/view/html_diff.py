"""The differences between two configs, side by side in HTML."""

import difflib
import re
from html import escape

from nanigpt.config.view.diff import Change
from nanigpt.config.view.html import asset

_LAST = re.compile(r"(?:(.*)\.)?(\w+(?:\[(?:'[^']*'|\"[^\"]*\"|[^\]'\"]*)\])*)", re.DOTALL)
_WORD = re.compile(r"\w+|\W")


def diff_html(changes: list[Change], *, old: str = "old", new: str = "new") -> str:
    """Return the changes as a table for a page: path, old value and new value, grouped by node.

    Args:
        changes: Result of `nanigpt.config.view.diff.diff`.
        old: Heading of the first column.
        new: Heading of the second column.
    """
    places: dict[str, list[tuple[str, Change]]] = {}
    for change in changes:
        node, argument = _split(change.where)
        places.setdefault(node, []).append((argument, change))
    values = sum(len(change.paths) for change in changes)
    return asset("diff.html").substitute(
        css=asset("base.css").template + asset("diff.css").template,
        title=f"{values} values differ" if values else "no difference",
        old=escape(old),
        new=escape(new),
        places="\n".join(_place(node, rows) for node, rows in places.items()),
    )


def _split(where: str) -> tuple[str, str]:
    """Return the node's path, and the argument with its indices."""
    match = _LAST.fullmatch(where)
    return (match[1] or "", match[2]) if match else ("", where or "(root)")


def _place(node: str, rows: list[tuple[str, Change]]) -> str:
    heading = f'<tr><th class="place" colspan="3">{escape(node or "(root)")}</th></tr>'
    return "\n".join(["<tbody>", heading, *(_row(*row) for row in rows), "</tbody>"])


def _row(argument: str, change: Change) -> str:
    old, new = _mark(change.old, change.new)
    many = f' <span class="times">×{len(change.paths)}</span>' if len(change.paths) > 1 else ""
    name = f'<td class="path">{escape(argument)}{many}</td>'
    return f"<tr>{name}{_cell('old', old)}{_cell('new', new)}</tr>"


def _cell(side: str, text: str | None) -> str:
    return '<td class="absent">absent</td>' if text is None else f'<td class="{side}">{text}</td>'


def _mark(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Escape both sides; if they have much in common, mark their differences."""
    if old is None or new is None:
        return (old and escape(old)), (new and escape(new))
    a, b = _WORD.findall(old), _WORD.findall(new)
    matcher = difflib.SequenceMatcher(a=a, b=b, autojunk=False)
    if len(a) < 4 or matcher.ratio() < 0.4:
        return escape(old), escape(new)
    sides = ["", ""]
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        for side, part in enumerate((a[i1:i2], b[j1:j2])):
            text = escape("".join(part))
            sides[side] += text if kind == "equal" or not text else f"<mark>{text}</mark>"
    return sides[0], sides[1]

"""Lists in directives: `a, f(b, c), 'd, e'` are three items."""

import re

from nanigpt.errors import UsageError

# A quoted text, or a character that has a meaning outside of quotes.
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[][(){},'"]""", re.DOTALL)


def split_items(text: str) -> list[str]:
    """Split a text at the commas that are outside of brackets and quotes.

    Raises:
        UsageError: An item is empty, or a bracket or quote is not closed.
    """
    items, start, depth = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] == "," and depth == 0:
            items.append(text[start : token.start()].strip())
            start = token.end()
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if depth < 0 or token[0] in ("'", '"'):
            raise UsageError("a bracket or quote is not closed")
    if depth:
        raise UsageError("a bracket or quote is not closed")
    items.append(text[start:].strip())
    if "" in items:
        raise UsageError("a value of the list is empty")
    return items

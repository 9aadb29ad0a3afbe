"""Lists in directives: `a, f(b, c), 'd, e'` are three items."""

from nanigpt.errors import UsageError


def split_items(text: str) -> list[str]:
    """Split a text at the commas that are outside of brackets and quotes.

    Raises:
        UsageError: An item is empty, or a bracket or quote is not closed.
    """
    items, start, depth, quote = [], 0, 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
        if depth < 0:
            raise UsageError("a bracket is closed that was not opened")
    if depth or quote:
        raise UsageError("a bracket or quote is not closed")
    items.append(text[start:].strip())
    if "" in items:
        raise UsageError("a value of the list is empty")
    return items

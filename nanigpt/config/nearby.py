"""Code in the working directory that no flag has imported, found without running it."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_FILES = 1000  # to read, so that a mistake in a large folder still ends at once


def modules_here() -> list[str]:
    """Return the names that `--import` could have here: of files, and of folders with files."""
    return list(dict.fromkeys(name for name, _ in itertools.islice(_files(), _FILES)))


def definition(kind: str, name: str, imported: Iterable[str]) -> tuple[str, Path] | None:
    """Return the module and the file that define a recipe, fiddler or component, or None.

    Files of the working directory and of its folders are read, but never imported.

    Args:
        kind: Name of the decorator.
        name: Name of the class or function.
        imported: Modules in which anything of this name is meant, even without the decorator.
    """
    plain = rf"^(?:def|class) {re.escape(name)}\b"
    decorated = rf"^@(?:\w+\.)*{kind}\b.*\n(?:@.*\n)*(?:def|class) {re.escape(name)}\b"
    elsewhere = rf"{decorated}|^class {re.escape(name)}\b" if kind == "component" else decorated
    imported = set(imported)
    for module, file in itertools.islice(_files(), _FILES):
        try:
            text = file.read_text(errors="replace")
        except OSError:  # it may not be read, or is gone
            continue
        if re.search(plain if module in imported else elsewhere, text, re.MULTILINE):
            return module, file
    return None


def _files() -> Iterator[tuple[str, Path]]:
    """Yield each Python file with the module, or the package, that imports it."""
    here = Path()
    for file in sorted(here.glob("*.py")):
        if file.stem.isidentifier():
            yield file.stem, file
    for file in sorted(here.glob("*/*.py")):
        if file.parent.name.isidentifier():
            yield file.parent.name, file

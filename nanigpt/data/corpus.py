"""Sources of text, and the split of their documents into training and validation."""

import glob
import hashlib
import itertools
import json
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from nanigpt.problems import ComponentError, Problem, refuse
from nanigpt.words import one_of

TRAIN, VALIDATION = "train", "validation"

# With fewer documents, the share that hashes hold out would vary by chance, or be empty.
_FEW_DOCUMENTS = 100


class Corpus(Protocol):
    """A source of documents."""

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield (split, text), where split is `TRAIN` or `VALIDATION`, in a fixed order.

        Raises:
            UsageError: The text cannot be read.
        """
        ...

    def identity(self) -> str:
        """Return a text that changes when the documents change."""
        ...


class TextCorpus:
    """Documents from files, each assigned to training or validation by the hash of its text.

    Equal texts go to the same split. If there are fewer than 100 documents, they are first cut into
    about 100 blocks of whole lines; the blocks with the smallest hashes, a share of
    `validation_fraction`, are then held out.

    Args:
        path: A file, a folder, or a glob (`**` for any depth). `.jsonl` and `.parquet` files hold
            one document per row; any other file is one document of UTF-8 text. None takes the
            embedded default: the sources of the running interpreter's standard library, without its
            tests (about 11 MB, which vary with the Python version).
        text_field: Column of `.jsonl` and `.parquet` rows that holds the text.
        validation_fraction: Share of the documents that is held out.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        text_field: str = "text",
        validation_fraction: float = 0.05,
    ):
        if not 0 < validation_fraction < 1:
            refuse("validation_fraction", validation_fraction, "more than 0, less than 1")
        self.path = path
        self.text_field = text_field
        self.validation_fraction = validation_fraction

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield (split, text), in an order that depends only on the files.

        Raises:
            ComponentError: a file is missing, empty, not UTF-8, or has no such column.
        """
        texts = (text for text in self._texts() if text)
        head = list(itertools.islice(texts, _FEW_DOCUMENTS))
        if not head:
            refuse("path", self.path, "files that hold text", component=self)
        if len(head) < _FEW_DOCUMENTS:
            yield from self._split_few(head)
            return
        limit = int(self.validation_fraction * 2**64)
        for text in itertools.chain(head, texts):
            yield (VALIDATION if _hash(text) < limit else TRAIN), text

    def identity(self) -> str:
        """Return a text that changes when the documents change."""
        described = {
            "files": [[f, s.st_size, s.st_mtime_ns] for f in self.files() for s in [os.stat(f)]],
            "text_field": self.text_field,
            "validation_fraction": self.validation_fraction,
        }
        return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()

    def files(self) -> list[str]:
        """Return the paths of the files, sorted.

        Raises:
            ComponentError: there are none.
        """
        if self.path is None:
            return self._standard_library()
        if not self.path:
            refuse("path", self.path, "a file, a folder or a glob", component=self)
        path = Path(self.path).expanduser()
        pattern = f"{glob.escape(str(path))}/**/*" if path.is_dir() else str(path)
        files = [str(path)] if path.is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [str(Path(f).resolve()) for f in files if Path(f).is_file()]
        if not files:
            expected = (
                "a file, a folder or a glob of .txt, .jsonl or .parquet files, but nothing in "
                f"{Path.cwd()} matches"
            )
            refuse("path", self.path, expected, component=self)
        return files

    def missing(self) -> list[Problem]:
        """Return a problem if no file matches the path; open no file."""
        if self.path is None:  # a walk through the standard library would take long
            return []
        try:
            self.files()
        except ComponentError as error:
            return list(error.problems)
        return []

    def _texts(self) -> Iterator[str]:
        for file in self.files():
            suffix = Path(file).suffix
            if suffix in (".jsonl", ".parquet"):
                yield from self._rows(file, "json" if suffix == ".jsonl" else "parquet")
            else:
                yield self._text(file)

    def _rows(self, file: str, kind: str) -> Iterator[str]:
        if Path(file).stat().st_size == 0:
            return
        import datasets

        try:
            rows = datasets.load_dataset(
                kind, data_files=glob.escape(file), split="train", streaming=True
            )
            for i, row in enumerate(rows):
                text = row.get(self.text_field)
                if not isinstance(text, str):
                    expected = f"a column with text in row {i} of {file}, {one_of(row)}"
                    refuse("text_field", self.text_field, expected, component=self)
                yield text
        except ComponentError:
            raise
        except Exception as error:  # datasets wraps each reader's own exceptions differently
            raise self._unreadable(f"{file} cannot be read as {kind}: {error}") from error

    def _text(self, file: str) -> str:
        try:
            if file.endswith(".py"):  # may declare another encoding in its first lines
                with tokenize.open(file) as stream:
                    return stream.read()
            with open(file, encoding="utf-8", newline="") as stream:  # line ends as they are
                return stream.read()
        except (UnicodeDecodeError, SyntaxError) as error:
            raise self._unreadable(f"{file} is not UTF-8 text ({error})") from error
        except OSError as error:
            raise self._unreadable(f"{file} cannot be read ({error.strerror})") from error

    def _unreadable(self, reason: str) -> ComponentError:
        expected = f"files that can be read, but {reason}"
        return ComponentError(Problem("path", self.path, expected, component=self))

    def _standard_library(self) -> list[str]:
        root = Path(sysconfig.get_path("stdlib"))
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        files = [
            str(path)
            for path in sorted(root.rglob("*.py"))
            if not skipped.intersection(path.relative_to(root).parts)
        ]
        if not files:
            expected = (
                f"a file or glob, since None needs the sources of Python, and {root} has none"
            )
            refuse("path", None, expected, component=self)
        return files

    def _split_few(self, texts: list[str]) -> Iterator[tuple[str, str]]:
        block_size = max(sum(map(len, texts)) // _FEW_DOCUMENTS, 1)
        blocks = [block for text in texts for block in _blocks(text, block_size)]
        n_held_out = max(1, round(self.validation_fraction * len(blocks)))
        held_out = set(sorted(map(_hash, blocks))[:n_held_out])
        for block in blocks:
            yield (VALIDATION if _hash(block) in held_out else TRAIN), block


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _blocks(text: str, size: int) -> Iterator[str]:
    """Cut a text into blocks of whole lines, each of at least `size` characters except the last."""
    block: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        block.append(line)
        length += len(line)
        if length >= size:
            yield "".join(block)
            block, length = [], 0
    if block:
        yield "".join(block)

"""The tokens of a corpus in two flat files, which are written once and then memory-mapped."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from nanigpt.data.corpus import TRAIN, VALIDATION, Corpus
from nanigpt.data.tokenizer import Tokenizer
from nanigpt.errors import UsageError

log = logging.getLogger(__name__)

_FORMAT = 2  # of the files that this module writes
_BATCH_CHARACTERS = 1 << 22


def cache_folder() -> Path:
    """Return `$NANIGPT_CACHE`, or `nanigpt` in the user's cache folder."""
    given = os.environ.get("NANIGPT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "nanigpt"


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer) -> Path:
    """Tokenize both splits into a folder of the cache, unless it exists, and return the folder.

    Documents follow each other, and the tokenizer's `end_id` ends each. The folder appears whole or
    not at all. If several processes ask for it, one writes it and the others wait, without a
    collective that could time out.

    Raises:
        UsageError: The text cannot be read, or the cache cannot be written.
    """
    key = f"{_FORMAT}/{corpus.identity()}/{tokenizer.identity()}"
    name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    folder = cache_folder() / "tokens" / name
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{name}.incomplete")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{name}.lock"))
        lock.acquire()
    except OSError as error:
        raise UsageError(
            f"the token cache {folder.parent} cannot be written ({error.strerror}); name another "
            "folder in NANIGPT_CACHE"
        ) from error
    try:
        if not folder.is_dir():  # otherwise another process wrote it meanwhile
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            _write(corpus, tokenizer, temporary)
            os.replace(temporary, folder)
    finally:
        lock.release()
    return folder


def open_tokens(folder: Path, split: str) -> np.ndarray:
    """Memory-map the token ids of one split, read-only."""
    meta = json.loads((folder / "meta.json").read_text())
    if meta["tokens"][split] == 0:
        return np.empty(0, dtype=meta["dtype"])
    return np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r")


def tokens_digest(folder: Path) -> str:
    """Return a digest that is equal for equal tokens, whatever files they came from."""
    return json.loads((folder / "meta.json").read_text())["digest"]


def _write(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    counts = {TRAIN: 0, VALIDATION: 0}
    characters, started, reported = 0, time.monotonic(), time.monotonic()
    digest = hashlib.blake2b(digest_size=16)
    streams = {split: open(folder / f"{split}.bin", "wb") for split in counts}
    try:
        for batch in _batches(corpus.documents()):
            for (split, text), ids in zip(
                batch, tokenizer.encode([text for _, text in batch]), strict=True
            ):
                tokens = np.append(ids, tokenizer.end_id).astype(dtype)
                streams[split].write(tokens.tobytes())
                digest.update(split.encode() + tokens.tobytes())
                counts[split] += len(tokens)
                characters += len(text)
            if time.monotonic() - reported > 5:
                reported = time.monotonic()
                rate = characters / (reported - started)
                log.info(f"tokenizing: {characters / 1e6:,.0f} M characters, {rate / 1e6:.2f} M/s")
    finally:
        for stream in streams.values():
            stream.close()
    meta = {"dtype": dtype.name, "tokens": counts, "digest": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))


def _batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""Files that several processes use: writes that others see whole, and locks."""

import os
import socket
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from nanigpt.errors import UsageError


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically and durably: it is always the old or the new file, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def try_lock(path: Path) -> BaseFileLock:
    """Lock a file without waiting, and write the owner's host and process id into it.

    Args:
        path: A file whose folder exists. It is created if necessary, and stays.

    Returns:
        The lock, which this process holds until it releases the lock, or ends.

    Raises:
        BlockingIOError: Another process has the lock. The message is the file's text,
            `HOST PROCESS`.
        OSError: The file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(path.read_text().strip()) from error
    path.write_text(f"{socket.gethostname()} {os.getpid()}\n")
    return lock


def plain_name(name: str) -> str:
    """Return a name of a file in a folder, which another file or program gave.

    Raises:
        UsageError: The name leads out of the folder or into another one.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise UsageError(f"{name!r} is not the name of a file; expected one without / and ..")
    return name

"""A lock that admits one sweep at a time to a directory.

filelock cannot replace it. Tasks of a Slurm array share this lock, and filelock's FileLock is only
exclusive; its ReadWriteLock, which SQLite implements, has no file that a child could keep open. The
trials' processes inherit this lock and keep it until they have ended, also when their sweep was
killed.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nanigpt.errors import UsageError

_PATIENCE = 60.0  # seconds


@contextmanager
def lock(path: Path, *, what: str, shared: bool = False) -> Iterator[IO[str]]:
    """Hold a lock on a file; children that inherit the file keep the lock until they have ended.

    If the owner was killed, its dying children still have the lock, and this function waits.

    Args:
        path: The file.
        what: Subject of the error message, such as "this trial".
        shared: Hold the lock together with others that share it.

    Raises:
        UsageError: A living process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as stream:
        _acquire(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, what)
        if not shared:
            stream.truncate(0)
            stream.write(f"{socket.gethostname()} {os.getpid()}\n")
            stream.flush()
        yield stream


def _acquire(stream: IO[str], kind: int, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            stream.seek(0)
            host, _, pid = stream.read().strip().partition(" ")
            if _alive(host, pid) or time.monotonic() > deadline:
                raise UsageError(
                    f"{what} is run by process {pid} on {host}; wait for it, or end it first"
                ) from error
            time.sleep(0.1)


def _alive(host: str, pid: str) -> bool:
    """Return whether a process lives; a process on another host counts as living."""
    return host != socket.gethostname() or Path(f"/proc/{pid}").exists()

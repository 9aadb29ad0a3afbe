"""One sweep at a time in a directory."""

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
    """Holds a lock on a file, which the children that inherit it keep until they have ended.

    Where its owner was killed, the lock is that of its dying children, and is waited for.

    Args:
        what: the name of what is locked, for the message.
        shared: hold it together with others that share it.

    Raises:
        UsageError: a living process has it.
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
    """Whether a process lives; one on another host is taken to."""
    return host != socket.gethostname() or Path(f"/proc/{pid}").exists()

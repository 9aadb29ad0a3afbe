"""One sweep at a time in a directory."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from nanigpt.errors import UsageError

_PATIENCE = 60.0  # seconds


def lock(path: Path, *, what: str, shared: bool = False) -> IO[str]:
    """Opens and locks a file. The lock is held until every process that inherited it has ended.

    Where its owner was killed, the lock is that of its dying children, and is waited for.

    Raises:
        UsageError: a living process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "a+")
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            break
        except OSError as error:
            stream.seek(0)
            host, _, pid = stream.read().strip().partition(" ")
            if _alive(host, pid) or time.monotonic() > deadline:
                raise UsageError(
                    f"{what} is run by process {pid} on {host}; wait for it, or end it first"
                ) from error
            time.sleep(0.1)
    if not shared:
        stream.truncate(0)
        stream.write(f"{socket.gethostname()} {os.getpid()}\n")
        stream.flush()
    return stream


def _alive(host: str, pid: str) -> bool:
    """Whether a process lives; one on another host is taken to."""
    return host != socket.gethostname() or Path(f"/proc/{pid}").exists()

"""Processes of trials, several at a time; none outlives this process."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nanigpt.config.registry import import_flags

PROGRAM = ["-m", "nanigpt"]

_GRACE = 45.0  # seconds; torchrun gives its workers 30
_PR_SET_PDEATHSIG = 1


class Pool:
    """Training commands that run at the same time.

    Args:
        size: Number of trials at a time.
        nproc: Number of ranks of each; torchrun starts more than one.
        holding: A file that the children keep open, and so keep locked.
    """

    def __init__(self, *, size: int, nproc: int, holding: IO[str]):
        self._size = size
        self._nproc = nproc
        self._holding = holding
        self._processes: dict[str, subprocess.Popen] = {}
        self._slots: dict[str, int] = {}
        # Loaded before a fork, since a forked child may not load libraries.
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def has_room(self) -> bool:
        """Whether another process can start."""
        return len(self) < self._size

    def start(self, name: str, directives: list[str], run: Path, log: Path) -> None:
        """Start `nanigpt train`, and append its output to `log`."""
        slot = min(set(range(self._size)) - set(self._slots.values()))
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *self._launcher(), *train_arguments(directives, run)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment(slot),
                start_new_session=True,  # only this process gets Ctrl-C, and ends its children
                pass_fds=[self._holding.fileno()],
                preexec_fn=self._end_with_parent(os.getpid()),
            )
        self._slots[name] = slot

    def ended(self) -> Iterator[tuple[str, int]]:
        """Yield name and exit status of each process that has ended since the last call."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                del self._processes[name], self._slots[name]
                yield name, process.returncode

    def end(self, name: str) -> None:
        """Ask one process to end; `ended` yields it when it has."""
        _signal(self._processes[name], signal.SIGTERM)

    def close(self) -> None:
        """End all processes with SIGTERM, and after a while with SIGKILL."""
        try:
            for process in self._processes.values():
                _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE
            with contextlib.suppress(subprocess.TimeoutExpired):  # SIGKILL ends the rest
                for process in self._processes.values():
                    process.wait(max(deadline - time.monotonic(), 0))
        finally:
            for process in self._processes.values():
                _signal(process, signal.SIGKILL)

    def _launcher(self) -> list[str]:
        if self._nproc == 1:
            return PROGRAM
        ranks = f"--nproc-per-node={self._nproc}"
        local = ["--standalone", "--local-addr=127.0.0.1"]
        return ["-m", "torch.distributed.run", *local, ranks, *PROGRAM]

    def _environment(self, slot: int) -> dict[str, str]:
        """Return a slot's share of cores and GPUs; slots share GPUs if there are too few."""
        import torch

        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        threads = max(cores // (self._size * self._nproc), 1)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        n = torch.cuda.device_count()
        if n:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n)))
            first = slot * self._nproc
            mine = [(first + rank) % n for rank in range(min(self._nproc, n))]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[i] for i in mine)
        return environment

    def _end_with_parent(self, parent: int) -> Callable[[], None] | None:
        """Return a function with which a child asks the kernel to end it when its parent ends."""
        libc = self._libc
        if libc is None:
            return None

        def ask() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it was killed before the call
                os._exit(1)

        return ask


def train_arguments(directives: list[str], run: Path) -> list[str]:
    """Return the command line of a trial, as a user could type it."""
    given = [f"--config={directive}" for directive in directives]
    return ["train", *import_flags(), *given, f"--run_dir={run}"]


def _signal(process: subprocess.Popen, number: int) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)

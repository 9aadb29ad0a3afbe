"""The record of a run's launches: command line, imports, versions and git commit."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import nanigpt
from nanigpt.config.registry import imports
from nanigpt.parallel.world import World
from nanigpt.training.run_directory import RunDirectory

_PACKAGES = (
    *("nanigpt", "torch", "torchao", "fiddle", "absl-py", "datasets", "tokenizers", "numpy"),
)


def record_launch(run: RunDirectory, world: World, *, fingerprint: str) -> None:
    """Append one object to the run's launches.jsonl."""
    launch = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv[1:],
        "imports": imports(),
        "fingerprint": fingerprint,
        "processes": world.size,
        "device": world.device.type,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": _git_commit(),
    }
    run.path.mkdir(parents=True, exist_ok=True)
    with open(run.launches, "a") as stream:
        stream.write(json.dumps(launch) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> dict[str, str | bool] | None:
    """Return the commit of the sources and whether they differ from it, or None without one."""
    folder = Path(nanigpt.__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):  # git is not installed, or hangs
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(git("status", "--short"))}

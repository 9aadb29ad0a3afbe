"""Where everything of one run lies."""

import os
import tempfile
from pathlib import Path


class RunDirectory:
    """Names of the files of a run.

    config.json           the DAG, loads back equal
    launches.jsonl        one object per launch: command line, versions, git commit, processes
    metrics.jsonl         one object per step
    tensorboard/          events
    checkpoints/          step_XXXXXXXX/, each whole
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def launches(self) -> Path:
        return self.path / "launches.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that other processes see whole, old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)

"""Name the files of a run."""

from pathlib import Path

from nanigpt.errors import UsageError
from nanigpt.files import try_lock


class RunDirectory:
    """Names of the files of a run.

    config.json           the DAG, which loads back equal
    launches.jsonl        one object per launch: command line, versions, git commit, processes
    metrics.jsonl         one object per step
    tensorboard/          events
    wandb.json, wandb/    id of the run at Weights & Biases, and files of its client
    checkpoints/          step_XXXXXXXX/, each whole
    profile/              files of the run's profilers, if there were any
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def lock(self) -> None:
        """Create the directory, and keep other processes from training in it while this one lives.

        Raises:
            UsageError: Another process trains there, or the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = try_lock(self.path / ".lock")
        except BlockingIOError as error:
            raise UsageError(
                f"--run_dir={self.path}: process {str(error).rpartition(' ')[2]} trains there now; "
                "wait, or give this run a directory of its own"
            ) from error
        except OSError as error:
            raise UsageError(
                f"--run_dir={self.path}: cannot be written ({error.strerror})"
            ) from error

    @property
    def started(self) -> bool:
        """Return whether any training has started here."""
        return self.metrics.exists() or self.checkpoints.exists()

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

    @property
    def profile(self) -> Path:
        return self.path / "profile"

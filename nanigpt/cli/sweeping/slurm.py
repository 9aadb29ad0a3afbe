"""The trials of a sweep as an array of Slurm jobs."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from nanigpt.cli.sweeping.directory import SweepDirectory, Trial
from nanigpt.config.registry import import_flags
from nanigpt.errors import UsageError
from nanigpt.files import write_atomically


def write_array(
    directory: SweepDirectory,
    trials: list[Trial],
    *,
    parallel: int | None,
    nproc: int,
    options: list[str],
) -> Path:
    """Write array.sbatch, with one task for each trial.

    A task has the number of its trial in sweep.json.

    Args:
        directory: The sweep.
        trials: The trials to run.
        parallel: Largest number of tasks at a time; None sets no limit.
        nproc: Number of ranks of each trial.
        options: Further options of sbatch, such as `--gpus=1`.

    Raises:
        UsageError: An option or the path has a line break.
    """
    numbers = ",".join(str(directory.trials.index(trial)) for trial in trials)
    limit = f"%{parallel}" if parallel else ""
    path = directory.path.resolve()
    lines = [
        f"--job-name={shlex.quote(path.name)}",
        f"--array={numbers}{limit}",
        f"--chdir={shlex.quote(str(Path.cwd()))}",
        f"--output={shlex.quote(f'{path}/slurm-%A_%a.log')}",
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--open-mode=append",
        *options,
    ]
    broken = next((line for line in lines if not line.isprintable()), None)
    if broken is not None:  # its second line would be a command of the script
        raise UsageError(f"#SBATCH {broken!r}: expected one line of printable characters")
    command = [sys.executable, "-m", "nanigpt", "sweep", *import_flags()]
    command += [f"--dir={path}", f"--nproc={nproc}"]
    script = "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            "# A task that is requeued continues from the trial's newest checkpoint.",
            f'exec {shlex.join(command)} --only="$SLURM_ARRAY_TASK_ID"',
        ]
    )
    write_atomically(path / "array.sbatch", script + "\n")
    return directory.path / "array.sbatch"


def submit(script: Path) -> str:
    """Run sbatch, and return its output.

    Raises:
        UsageError: This machine has no sbatch, or sbatch refused the script.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            f"--submit: no sbatch on this machine; submit {script} on a machine that has it, or "
            "leave out --slurm to run the trials here"
        )
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    if done.returncode != 0:
        raise UsageError(f"sbatch {script}: {done.stderr.strip()}")
    return done.stdout.strip()

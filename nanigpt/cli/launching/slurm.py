"""Launches as a Slurm job, by sbatch with tools/cluster/slurm.sbatch."""

import os
import subprocess
import sys

from nanigpt.cli.launching.plan import Command, Shape, cluster_file

_GPU_OPTIONS = ("--gpus", "--gres", "-G")


def sbatch(shape: Shape, nested: list[str], *, options: list[str]) -> Command:
    """Return the command that submits the job.

    Args:
        shape: Nodes and processes.
        nested: The command to launch.
        options: Further options of sbatch. If none requests GPUs, the job requests one GPU for
            each process.
    """
    if not any(option.startswith(_GPU_OPTIONS) for option in options):
        options = [f"--gpus-per-node={shape.nproc_per_node}", *options]
    script = cluster_file("slurm.sbatch")
    return Command(
        ["sbatch", f"--nodes={shape.nodes}", *options, str(script), *nested],
        {
            "PYTHON": sys.executable,
            "NPROC_PER_NODE": str(shape.nproc_per_node),
            "MAX_RESTARTS": str(shape.max_restarts),
        },
    )


def job_step(shape: Shape, nested: list[str]) -> str:
    """Return the command that the job will run, which the script prints outside of a job.

    Words in capitals stand for values that Slurm will set.
    """
    outside = {name: v for name, v in os.environ.items() if not name.startswith("SLURM_")}
    job = sbatch(shape, nested, options=[])
    shown = subprocess.run(
        ["bash", str(cluster_file("slurm.sbatch")), *nested],
        env=outside | job.environment | {"SLURM_NNODES": str(shape.nodes)},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.strip()

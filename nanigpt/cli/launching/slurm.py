"""A job of Slurm: sbatch with tools/cluster/slurm.sbatch."""

import os
import subprocess
import sys

from nanigpt.cli.launching.plan import Command, Shape, cluster_file

_GPU_OPTIONS = ("--gpus", "--gres", "-G")


def sbatch(shape: Shape, nested: list[str], *, options: list[str]) -> Command:
    """Submits the job.

    Args:
        options: further ones of sbatch. Where none asks for GPUs, one per process is asked for.
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
    """What the job will run, as the script itself says outside of a job.

    Words in capitals stand for what Slurm will decide.
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

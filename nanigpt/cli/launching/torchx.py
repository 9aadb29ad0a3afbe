"""Launches by TorchX: `torchx run` with tools/cluster/torchx_component.py."""

import importlib.util
import os
import sys
from pathlib import Path

from nanigpt.cli.launching.plan import Command, Shape, cluster_file
from nanigpt.errors import UsageError


def require_cluster() -> None:
    """Raise a UsageError where this machine knows no Kubernetes cluster."""
    files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    if not inside and not any(Path(file).expanduser().is_file() for file in files if file):
        raise UsageError(
            "launch: --scheduler=kubernetes: expected the configuration of a cluster, but there is "
            f"no file {os.pathsep.join(files)}; $KUBECONFIG may name another one"
        )


def torchx(
    shape: Shape,
    nested: list[str],
    *,
    scheduler: str,
    options: list[str],
    component_options: list[str],
) -> Command:
    """Return the command that gives the component to a scheduler.

    Args:
        shape: Nodes and processes.
        nested: The command to launch.
        scheduler: Name of TorchX's scheduler, such as `local_cwd`, `slurm` or `kubernetes`.
        options: Further options of `torchx run`, such as `-cfg=queue=default`.
        component_options: Further options of the component, such as `--image=...`.

    Raises:
        UsageError: TorchX is not installed.
    """
    if importlib.util.find_spec("torchx") is None:
        raise UsageError(
            "launch: --on=torchx needs TorchX; install it with: pip install 'nanigpt[cluster]'"
        )
    if scheduler != "kubernetes":  # its image has a Python of its own
        component_options = [f"--python={sys.executable}", *component_options]
    return Command(
        [
            sys.executable,
            "-m",
            "torchx.cli.main",
            "run",
            f"--scheduler={scheduler}",
            "--workspace=",  # copies nothing and builds no image, since nanigpt is installed
            *options,
            f"{cluster_file('torchx_component.py')}:run",
            f"--nodes={shape.nodes}",
            f"--nproc_per_node={shape.nproc_per_node}",
            f"--max_restarts={shape.max_restarts}",
            *component_options,
            "--",
            *nested,
        ]
    )

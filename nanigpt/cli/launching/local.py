"""Launches on this machine, by torchrun."""

import sys

from nanigpt.cli.launching.plan import Command, Shape
from nanigpt.errors import UsageError


def torchrun(shape: Shape, nested: list[str], *, endpoint: str | None, rdzv_id: str) -> Command:
    """Return the torchrun command of one node.

    For several nodes the command is the same on each, since they number themselves.

    Args:
        shape: Nodes and processes.
        nested: The command to launch.
        endpoint: Host and port at which several nodes meet. The host is one of them.
        rdzv_id: Name of this launch, among others at that endpoint.

    Raises:
        UsageError: Several nodes have no endpoint, or the endpoint is not `HOST:PORT`.
    """
    if shape.nodes == 1:
        meet = ["--standalone"]
    else:
        if endpoint is None:
            raise UsageError(
                f"launch: --on=local with --nodes={shape.nodes} needs "
                "--rdzv_endpoint=HOST:PORT, where HOST is one of the nodes; start the same command "
                "on every node"
            )
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"launch: --rdzv_endpoint={endpoint}: expected HOST:PORT")
        meet = [
            f"--nnodes={shape.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            f"--rdzv-id={rdzv_id}",
        ]
    return Command(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *meet,
            f"--nproc-per-node={shape.nproc_per_node}",
            f"--max-restarts={shape.max_restarts}",
            "-m",
            "--",  # keeps torchrun from taking the command's --run for a flag of its own
            "nanigpt",
            *nested,
        ]
    )

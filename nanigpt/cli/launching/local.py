"""torchrun on this machine."""

import sys

from nanigpt.cli.launching.plan import Command, Shape
from nanigpt.errors import UsageError


def torchrun(shape: Shape, nested: list[str], *, endpoint: str | None, rdzv_id: str) -> Command:
    """One node's torchrun. For several nodes it is the same on each: they number themselves.

    Args:
        endpoint: host and port at which several nodes meet; the host is one of them.
        rdzv_id: of this launch, among those that meet there.

    Raises:
        UsageError: several nodes have no endpoint, or it is not `HOST:PORT`.
    """
    if shape.nodes == 1:
        meet = ["--standalone"]
    else:
        if endpoint is None:
            raise UsageError(
                f"launch: --on=local with --nodes={shape.nodes} needs "
                "--rdzv_endpoint=HOST:PORT, where HOST is one of the nodes; the same command is to "
                "be started on every node"
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
            "--",  # or torchrun would take the command's --run for an abbreviation of its own flag
            "nanigpt",
            *nested,
        ]
    )

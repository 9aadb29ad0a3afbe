"""A job of TorchX: `torchx run` with tools/cluster/torchx_component.py."""

import importlib.util
import sys

from nanigpt.cli.launching.plan import Command, Shape, cluster_file
from nanigpt.errors import UsageError


def torchx(
    shape: Shape,
    nested: list[str],
    *,
    scheduler: str,
    options: list[str],
    component_options: list[str],
) -> Command:
    """Gives the component to a scheduler.

    Args:
        scheduler: of TorchX, such as `local_cwd`, `slurm` or `kubernetes`.
        options: further ones of `torchx run`, such as `-cfg=queue=default`.
        component_options: further ones of the component, such as `--image=...`.

    Raises:
        UsageError: TorchX is not installed.
    """
    if importlib.util.find_spec("torchx") is None:
        raise UsageError(
            "launch: --on=torchx needs TorchX; install it with: pip install 'nanigpt[cluster]'"
        )
    if scheduler != "kubernetes":  # there the image has a Python of its own
        component_options = [f"--python={sys.executable}", *component_options]
    return Command(
        [
            sys.executable,
            "-m",
            "torchx.cli.main",
            "run",
            f"--scheduler={scheduler}",
            "--workspace=",  # nothing is copied, no image built: nanigpt is there already
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

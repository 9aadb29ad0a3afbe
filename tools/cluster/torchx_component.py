"""TorchX component: one nanigpt command on the nodes of any of TorchX's schedulers.

torchx run --scheduler=local_cwd tools/cluster/torchx_component.py:run --nproc_per_node=2 -- train
nanigpt launch --scheduler=kubernetes --nodes=4 -- train    (the same, checked before)

Needs TorchX where it is submitted: pip install 'nanigpt[cluster]'.
"""

import shlex

from torchx import specs
from torchx.util.types import to_dict


def run(
    *command: str,
    nodes: int = 1,
    nproc_per_node: int = 8,
    max_restarts: int = 1,
    max_retries: int = 0,
    image: str = "nanigpt",
    name: str = "nanigpt",
    python: str = "python",
    gpus: int = -1,
    cpus: int = -1,
    memory_mb: int = -1,
    port: int = 29500,
    env: str = "",
) -> specs.AppDef:
    """One torchrun per node, which meet at the first one.

    Args:
        command: of nanigpt, with its arguments.
        nodes: machines, or pods.
        nproc_per_node: processes on each.
        max_restarts: how often torchrun restarts all processes after a failure.
        max_retries: how often the scheduler then starts the whole job again.
        image: container image that has nanigpt; local_cwd and slurm do not read it.
        name: of the job.
        python: interpreter that has nanigpt, on the nodes or in the image.
        gpus: per node; -1 asks for one per process, 0 for none.
        cpus: per node; -1 leaves it to the scheduler.
        memory_mb: MiB per node; -1 leaves it to the scheduler.
        port: at which the nodes meet; a single node takes a free one.
        env: variables for the processes, as NAME=VALUE,NAME=VALUE.
    """
    # The host of the first node is in a variable whose name the scheduler fills in, and which some
    # leave empty on the first node itself; "$$" is one "$" for TorchX, and so expanded by bash.
    first = f"$${{{specs.macros.rank0_env}:-localhost}}"
    meet = [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f'--rdzv-endpoint="{first}:{port}"',
        f"--rdzv-id={specs.macros.app_id}",
    ]
    line = [
        f"exec {shlex.quote(python)} -m torch.distributed.run",
        *(["--standalone"] if nodes == 1 else meet),
        f"--nproc-per-node={nproc_per_node}",
        f"--max-restarts={max_restarts}",
        f"-m -- nanigpt {shlex.join(command)}".replace("$", "$$"),
    ]
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="ranks",
                image=image,
                entrypoint="bash",
                args=["-c", " ".join(line)],
                env=to_dict(env),
                num_replicas=nodes,
                max_retries=max_retries,
                port_map={"c10d": port},
                resource=specs.Resource(
                    cpu=cpus, gpu=nproc_per_node if gpus == -1 else gpus, memMB=memory_mb
                ),
            )
        ],
    )

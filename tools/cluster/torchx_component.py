"""A TorchX component that runs one nanigpt command on the nodes of any of TorchX's schedulers.

torchx run --scheduler=local_cwd tools/cluster/torchx_component.py:run --nproc_per_node=2 -- train
nanigpt launch --scheduler=kubernetes --nodes=4 -- train    (checks the command first)

The machine that submits it needs TorchX: pip install 'nanigpt[cluster]'.
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
    """Start one torchrun on each node; they meet at the first node.

    Args:
        command: The nanigpt command with its arguments.
        nodes: Number of machines, or pods.
        nproc_per_node: Number of processes on each.
        max_restarts: Number of times that torchrun restarts all processes after a failure.
        max_retries: Number of times that the scheduler then starts the whole job again.
        image: Container image that has nanigpt; local_cwd and slurm do not read it.
        name: Name of the job.
        python: Interpreter that has nanigpt, on the nodes or in the image.
        gpus: GPUs of each node; -1 requests one for each process, 0 requests none.
        cpus: CPUs of each node; -1 leaves the number to the scheduler.
        memory_mb: MiB of each node; -1 leaves the size to the scheduler.
        port: Port at which the nodes meet; a single node takes a free one.
        env: Variables for the processes, as NAME=VALUE,NAME=VALUE.
    """
    # The scheduler fills in the name of a variable that has the host of the first node. Some leave
    # it empty on the first node itself. "$$" is one "$" for TorchX, so that bash expands it.
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

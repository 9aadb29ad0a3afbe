"""Start train, eval or generate on many processes, here or on a cluster.

nanigpt launch --nproc_per_node=8 -- train --config=config:llama3_8b
nanigpt launch --nodes=4 --sbatch=--time=8:00:00 -- train --config=config:llama3_70b
nanigpt launch --nodes=4 --dry_run -- train --config=config:llama3_70b --run_dir=runs/70b
nanigpt launch --nodes=2 --rdzv_endpoint=node0:29500 -- train   (the same on each of the two nodes)
nanigpt launch --nodes=2 --scheduler=kubernetes --component=--image=nanigpt:1 -- train

Write the command after --, as without launch; `train` may be left out. launch parses it, and checks
its config, before it starts anything. tools/cluster/README.md helps to choose the way of starting.
"""

from absl import flags

from nanigpt.cli.launching.local import torchrun
from nanigpt.cli.launching.nested import check_command
from nanigpt.cli.launching.plan import Command, Shape
from nanigpt.cli.launching.slurm import job_step, sbatch
from nanigpt.cli.launching.torchx import require_cluster, torchx
from nanigpt.errors import UsageError

TAKES_ARGUMENTS = True

# Flags that belong to one way of starting, and choose it.
_BELONGS_TO = {
    "rdzv_endpoint": "local",
    "rdzv_id": "local",
    "sbatch": "slurm",
    "scheduler": "torchx",
    "torchx": "torchx",
    "component": "torchx",
}


def define_flags(values: flags.FlagValues) -> None:
    values.set_gnu_getopt(False)  # arguments after the name of the command belong to the command

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    def integer(name: str, default: int | None, text: str, low: int) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=low, flag_values=values)

    def options(name: str, text: str) -> None:
        flags.DEFINE_multi_string(name, [], text, flag_values=values)

    integer("nodes", 1, "Use this number of machines.", low=1)
    integer(
        "nproc_per_node",
        None,
        "Start this number of processes on each machine, one for each GPU (default: the number of "
        "this machine's GPUs, or 1; on a cluster 8).",
        low=1,
    )
    integer(
        "max_restarts",
        None,
        "Restart all processes up to this number of times after a failure, from the newest "
        "checkpoint (default: 0; on a cluster 1).",
        low=0,
    )
    flags.DEFINE_enum(
        "on",
        None,
        ["local", "slurm", "torchx"],
        "Start the processes in this way (default: the way that other flags belong to, or slurm "
        "for several nodes).",
        flag_values=values,
    )
    flags.DEFINE_bool("dry_run", False, "Print the command, and run nothing.", flag_values=values)
    string("rdzv_endpoint", None, "local: Let several nodes meet at this HOST:PORT.")
    string("rdzv_id", "nanigpt", "local: Name this launch, with the same name on all nodes.")
    options("sbatch", "slurm: Give sbatch another option, such as --partition=NAME.")
    string("scheduler", "local_cwd", "torchx: Use local_cwd, slurm, kubernetes or another one.")
    options("torchx", "torchx: Give torchx run another option, such as -cfg=queue=default.")
    options("component", "torchx: Give the component another option, such as --image=NAME.")


def run(values: flags.FlagValues, nested: list[str]) -> int:
    if not nested or nested[0].startswith("-"):
        nested = ["train", *nested]
    imports = values["import"].value or []
    nested = [nested[0], *(f"--import={text}" for text in imports), *nested[1:]]
    on = _place(values)
    shape = _shape(values, on)
    check_command(nested, world_size=shape.world_size)
    command = _command(values, on, shape, nested)
    if not values.dry_run:
        if values.scheduler == "kubernetes" and "--dryrun" not in values.torchx:
            require_cluster()
        command.become()
    print(command)
    if on == "slurm":
        print(f"# the job then runs: {job_step(shape, nested)}")
    return 0


def _place(values: flags.FlagValues) -> str:
    owners = {owner: name for name, owner in _BELONGS_TO.items() if values[name].present}
    on = values.on or next(iter(owners), "slurm" if values.nodes > 1 else "local")
    for owner, name in owners.items():
        if owner != on:
            raise UsageError(f"launch: --{name} goes with --on={owner}, but this is --on={on}")
    return on


def _shape(values: flags.FlagValues, on: str) -> Shape:
    nproc, restarts = values.nproc_per_node, values.max_restarts
    if nproc is None:
        nproc = _processes_here() if on == "local" else 8
    if restarts is None:
        restarts = 0 if on == "local" else 1
    return Shape(nodes=values.nodes, nproc_per_node=nproc, max_restarts=restarts)


def _processes_here() -> int:
    import torch

    return max(torch.cuda.device_count(), 1)


def _command(values: flags.FlagValues, on: str, shape: Shape, nested: list[str]) -> Command:
    if on == "slurm":
        return sbatch(shape, nested, options=values.sbatch)
    if on == "local":
        return torchrun(shape, nested, endpoint=values.rdzv_endpoint, rdzv_id=values.rdzv_id)
    return torchx(
        shape,
        nested,
        scheduler=values.scheduler,
        options=values.torchx,
        component_options=values.component,
    )

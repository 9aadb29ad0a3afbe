"""The command to launch, checked here so that a typo never waits in a queue."""

from nanigpt.cli.trainer import build_trainer, recorded_config
from nanigpt.errors import UnknownName, UsageError
from nanigpt.training.trainer import Trainer

_LAUNCHED = ("train", "eval", "generate")  # those that work on several processes


def check_command(arguments: list[str], *, world_size: int) -> None:
    """Parses a command, composes its config, checks it, and whether it fits so many processes.

    Raises:
        UsageError: anything of that is wrong.
    """
    from nanigpt.cli.main import COMMANDS, parse  # main imports commands when it runs them

    name = arguments[0]
    if name not in COMMANDS:
        raise UnknownName(f"launch: unknown command {name!r}", name, _LAUNCHED)
    if name not in _LAUNCHED:
        raise UsageError(
            f"launch: {name!r} runs in one process: nanigpt {name}; those to launch are "
            f"{', '.join(_LAUNCHED)}"
        )
    _, values, _ = parse(name, arguments[1:])
    trainer = build_trainer(values.config if name == "train" else recorded_config(values))
    if name == "train":  # the others run a model on any number of processes
        check_world_size(trainer, world_size)


def check_world_size(trainer: Trainer, world_size: int) -> None:
    """Checks what can be told of a run on so many processes without starting them.

    Raises:
        UsageError: the mesh, or the batch, cannot be divided among them.
    """
    try:
        trainer.check(world_size)
    except UsageError as error:
        raise error.within("launch") from error

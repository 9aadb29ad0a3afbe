"""Checks of the command to launch, so that a mistake never waits in a queue."""

from nanigpt.cli.trainer import build_trainer, checked_trainer, recorded_config
from nanigpt.config.compose.flag import config_flag
from nanigpt.errors import UnknownName, UsageError
from nanigpt.words import one_of

_LAUNCHED = ("train", "eval", "generate")  # commands that work on several processes


def check_command(arguments: list[str], *, world_size: int) -> None:
    """Check a command, its config, and that the config fits the number of processes.

    Args:
        arguments: The command.
        world_size: Number of processes.

    Raises:
        UsageError: Something is wrong.
    """
    from nanigpt.cli.main import COMMANDS, parse  # main imports commands when it runs them

    name = arguments[0]
    if name not in COMMANDS:
        raise UnknownName(f"launch: unknown command {name!r}", name, _LAUNCHED)
    if name not in _LAUNCHED:
        raise UsageError(
            f"launch: {name!r} runs in one process: nanigpt {name}; launch takes "
            f"{one_of(_LAUNCHED)}"
        )
    _, values, _ = parse(name, arguments[1:])
    if name == "train":
        directives = config_flag(values).directives
        checked_trainer(values.config, ranks=world_size, directives=directives)
    else:  # the others run a model on any number of processes
        build_trainer(recorded_config(values))

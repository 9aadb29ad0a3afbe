"""The command to launch, checked here so that a typo never waits in a queue."""

from nanigpt.cli.trainer import build_trainer, checked_trainer, recorded_config
from nanigpt.errors import UnknownName, UsageError

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
    if name == "train":
        directives = values["config"].directives
        checked_trainer(values.config, ranks=world_size, directives=directives)
    else:  # the others run a model on any number of processes
        build_trainer(recorded_config(values))

"""The program: it finds the command, parses its flags, and prints a user's mistake as one line."""

import importlib
import logging
import os
import sys
import unicodedata
from types import ModuleType
from typing import Any

from absl import flags

from nanigpt.errors import RankError, UnknownName, UsageError
from nanigpt.problems import ComponentError

COMMANDS = {
    "train": "Train a run, or resume it.",
    "eval": "Compute the validation loss of a run's newest checkpoint.",
    "check": "Check a config without running it.",
    "show": "Print a config.",
    "count": "Print parameters, FLOPs and KV-cache bytes of a model, or of all recipes.",
    "shards": "Print the parameters that one of many ranks would hold.",
    "diff": "Print the differences between two configs.",
    "fingerprint": "Print the content hash of a config.",
    "generate": "Sample text from a run's newest checkpoint.",
    "convert": "Import Hugging Face weights, or export a run's.",
    "import-config": "Write a recipe from a config of torchtitan or torchtune.",
    "sweep": "Train variants of a config, and compare them.",
    "launch": "Start a command on many processes, here or on a cluster.",
}

_IMPORT = (
    "Import this module, package or FILE.py of yours, so that --config finds its recipes, "
    "fiddlers, components and classes. Repeat the flag for several."
)


_LONGEST_LINE = 2000


def main(argv: list[str]) -> int:
    """Run one command; return the exit status, which is 2 for a mistake of the user."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not argv or argv[0] in ("help", "--help", "-h"):
        argv = ["help"]
    try:
        status = _run(argv[0], argv[1:])
        sys.stdout.flush()
        return status
    except (UsageError, ComponentError) as error:
        # Ranks of one node usually meet the same mistake, so only the first prints it.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, RankError):
            print(f"nanigpt: {_printable(_without_long_lines(str(error)))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # like a program that SIGPIPE has ended
    except KeyboardInterrupt:
        print("nanigpt: interrupted", file=sys.stderr)
        return 130


def _without_long_lines(text: str) -> str:
    """Cut the middle out of lines that no screen can hold, and leave out commands of this length.

    A command line may have values of any length, such as a prompt.
    """
    lines = []
    for line in text.splitlines():
        if len(line) <= _LONGEST_LINE:
            lines.append(line)
        elif not line.lstrip().startswith("try: "):
            half = _LONGEST_LINE // 2
            cut = f" ... ({len(line) - 2 * half:,} characters) ... "
            lines.append(f"{line[:half]}{cut}{line[-half:]}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Escape what a terminal would obey, such as a color or a line that is cleared.

    A message may quote a file of somebody else.
    """
    return "".join(
        repr(letter)[1:-1]
        if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs")
        else letter
        for letter in text
    )


def parse(name: str, argv: list[str]) -> tuple[ModuleType, flags.FlagValues, list[str]]:
    """Return the module of a command, its flags, and the arguments after them.

    Raises:
        UsageError: There is no such command, or it does not take these arguments.
    """
    if name.replace("_", "-") in COMMANDS:  # as flags and fiddlers are written
        name = name.replace("_", "-")
    if name not in COMMANDS:
        error = UnknownName(f"unknown command {name!r}", name, COMMANDS)
        raise UsageError(f"{error}\n  try: nanigpt {' '.join([*error.near[:1], '--help'])}")
    command = importlib.import_module(f"nanigpt.cli.{name.replace('-', '_')}")
    # A separate set of flags, since fiddle.absl_flags adds legacy flags to absl's global one.
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    flags.DEFINE_multi_string("import", [], _IMPORT, flag_values=values)
    command.define_flags(values)
    try:
        rest = values([f"nanigpt {name}", *argv])[1:]
    except flags.Error as error:
        raise UsageError(f"{name}: {_message(error)}{_help_line(name)}") from error
    if rest and not getattr(command, "TAKES_ARGUMENTS", False):
        raise UsageError(
            f"{name}: unexpected argument {rest[0]!r}; flags look like --name=value"
            f"{_help_line(name)}"
        )
    _import(values["import"].value or [])  # --config is composed when a command first reads it
    return command, values, rest


def _run(name: str, argv: list[str]) -> int:
    if name == "help":
        _import([])
        print(_help())
        return 0
    command, values, rest = parse(name, argv)
    config: Any = next((values[flag] for flag in values if flag == "config"), None)
    if values.help or (config is not None and config.asks_for_help):
        print(_command_help(command, values, config))
        return 0
    if getattr(command, "TAKES_ARGUMENTS", False):
        status = command.run(values, rest)
    else:
        status = command.run(values)
    # The command's objects no longer exist here. After an error the group is not destroyed: other
    # ranks may be in the middle of a collective, and destroying it would wait for them forever.
    if "torch.distributed" in sys.modules:
        from nanigpt.parallel.world import stop_world

        stop_world()
    return status


def _import(given: list[str]) -> None:
    from nanigpt.config.imports import import_all  # with fiddle, which a typo does not wait for

    import_all(given)


def _message(error: flags.Error) -> str:
    """Return absl's message without the tuple that it prints for the value of a boolean flag."""
    cause = error.__context__
    if isinstance(cause, ValueError) and len(cause.args) > 1:
        return str(error).replace(str(cause), "expected true or false")
    return str(error)


def _help_line(command: str) -> str:
    return f"\n  try: nanigpt {command} --help"


def _command_help(command: ModuleType, values: flags.FlagValues, config: Any) -> str:
    parts = [(command.__doc__ or "").strip(), f"Flags\n{_flag_help(values)}"] if values.help else []
    if config is not None and config.asks_for_help:
        from nanigpt.config.view.listing import listing

        parts.append(listing(values.config))
    elif config is not None:
        parts.append("--config=help lists recipes, fiddlers, components, and the config's tags.")
    return "\n\n".join(parts)


def _flag_help(values: flags.FlagValues) -> str:
    described = [values[name] for name in values if len(name) > 1]
    lines = []
    for flag in described:
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


def _help() -> str:
    from nanigpt.config.view.listing import listing

    commands = "\n".join(f"  {name:<44}  {text}" for name, text in COMMANDS.items())
    usage = "usage: nanigpt COMMAND [--flag=value ...]    nanigpt COMMAND --help"
    return f"{usage}\n\nCommands\n{commands}\n\n{listing()}"


def run_console() -> int:
    """Run the installed command `nanigpt`."""
    return main(sys.argv[1:])

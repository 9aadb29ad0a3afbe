"""The `--config` flag: directives in command-line order, all or nothing."""

import contextlib
import logging
import os
import shlex
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiddle as fdl
from absl import flags
from fiddle.absl_flags import FiddleFlag

from nanigpt.config import registry
from nanigpt.config.compose.call import Call
from nanigpt.config.compose.hints import as_recipe_argument, note_of_sharing, with_kind
from nanigpt.config.compose.overrides import apply_override, apply_tag
from nanigpt.config.record.file import load
from nanigpt.config.record.foreign import refuse_foreign
from nanigpt.config.record.provenance import called_by, set_by
from nanigpt.config.record.run_config import load_run
from nanigpt.errors import ForeignFile, MissingImport, UnknownName, UsageError
from nanigpt.words import one_of

log = logging.getLogger(__name__)

_BASES = ("config", "config_file", "run")
_EDITS = ("fiddler", "set", "tag")
_HELP = "help"

Base = str | Callable[[list[str]], str | None] | None


class ConfigFlag(FiddleFlag):
    """The flag `--config` with its directives.

    Bases are `config:RECIPE`, `config_file:PATH`, `run:DIR` and `SOURCE:PATH`. Edits are
    `fiddler:NAME(args)`, `set:PATH=VALUE` and `tag:TAG=VALUE`. Names come only from the registry.
    After a failed directive, reading the value fails again, so that no config is half edited.

    Args:
        *args: Arguments of `FiddleFlag`.
        default_directive: The base if the first directive is an edit, or a function that returns
            the base from the directives that are given.
        **kwargs: Further arguments of `FiddleFlag`.
    """

    _remaining_directives: list[str]
    _value: fdl.Buildable | None

    def __init__(self, *args: Any, default_directive: Base = None, **kwargs: Any):
        self._default_directive = default_directive
        super().__init__(*args, default_module=registry, **kwargs)

    @property
    def directives(self) -> list[str]:
        """All directives, the default base included."""
        given = [d for d in self.all_arguments if d != _HELP]
        default = self._default_directive
        base = default(given) if callable(default) else default
        return given if base is None or any(map(is_base, given)) else [base, *given]

    @property
    def asks_for_help(self) -> bool:
        """Whether `--config=help` is among them."""
        return _HELP in self.all_arguments

    @property
    def value(self) -> fdl.Buildable | None:
        if self._remaining_directives or (self._value is None and self._default_directive):
            # Nothing but `help` describes no config.
            self._value = compose(self.directives) if self.directives else None
            self._remaining_directives = []
        return self._value

    @value.setter
    def value(self, value: fdl.Buildable | None) -> None:
        self._value = value


def define_config_flag(values: flags.FlagValues, *, default_directive: Base = None) -> None:
    """Define `--config` among `values`."""
    flag = ConfigFlag(
        name="config",
        default=None,
        default_directive=default_directive,
        parser=flags.ArgumentParser(),
        serializer=None,
        help_string=(
            "Start from config:RECIPE, config_file:PATH, run:DIR or huggingface:DIR, and apply "
            "fiddler:NAME(args), set:PATH=VALUE and tag:TAG=VALUE in this order. Repeat the flag "
            "for each. "
            "--config=help lists the names."
        ),
    )
    flags.DEFINE_flag(flag, flag_values=values)


def config_flag(values: flags.FlagValues) -> ConfigFlag:
    """Return the flag that `define_config_flag` defined."""
    flag = values["config"]
    assert isinstance(flag, ConfigFlag)
    return flag


def is_base(directive: str) -> bool:
    """Return whether a directive begins a config, or has no form that could edit one."""
    return directive.partition(":")[0] not in _EDITS


def compose(directives: list[str], cfg: fdl.Buildable | None = None) -> fdl.Buildable:
    """Compose the config that directives describe: one base, then edits in order.

    Args:
        directives: The directives.
        cfg: A base from Python, which is edited in place. If given, all directives are edits.

    Raises:
        UsageError: A directive is wrong. The message begins with it, and ends with a suggestion.
    """
    if not directives and cfg is None:
        directives = [""]
    base = None if cfg is None else "a config"
    if base is None:
        _require_base_first(directives)
    for i, directive in enumerate(directives):
        try:
            cfg = _apply(cfg, directive, base or (directives[0] if i else None))
        except UsageError as error:
            advice = _try(directives[:i], directive, error)
            told = str(error).removeprefix(f"{directive.partition(':')[2]}: ")
            raise UsageError(f"--config={directive}: {told}\n  try: {advice}") from error
        kind, _, expression = directive.partition(":")
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        if kind == "set" and is_first and (note := note_of_sharing(cfg, expression)):
            log.warning("--config=%s: %s", directive, note)
    return cfg


def _require_base_first(directives: list[str]) -> None:
    """Raise a UsageError if a base stands behind an edit, which would apply to nothing."""
    kinds = [directive.partition(":")[0] for directive in directives]
    bases = {*_BASES, *registry.sources()}
    later = [d for d, kind in zip(directives, kinds, strict=True) if kind in bases]
    if kinds[0] in _EDITS and later:
        ordered = [*later, *(d for d in directives if d not in later)]
        raise UsageError(
            f"--config={later[0]}: expected before all edits, which apply in their order\n"
            f"  try: {shlex.join(f'--config={d}' for d in ordered)}"
        )


def recipe_name(directives: list[str]) -> str:
    """Return a name for runs of these directives: the recipe's or the recorded run's."""
    expression = directives[0].partition(":")[2]
    if _kind(directives[0]) == "config":
        return Call.parse(expression).name
    path = Path(expression).expanduser().resolve()
    if _kind(directives[0]) == "run":
        return path.name
    return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


def _apply(cfg: fdl.Buildable | None, directive: str, base: str | None) -> fdl.Buildable:
    """Return the config after one directive, which must be a base if there is no `base` yet."""
    kind, expression = _kind(directive), directive.partition(":")[2]
    if kind not in _EDITS and base is not None:
        raise UsageError(f"a second base after {base!r}; keep one of the two")
    if kind in _EDITS and base is None:
        raise UsageError("expected config:RECIPE, config_file:PATH or run:DIR first")
    if kind == "config":
        return _recipe(expression)
    if kind in ("config_file", "run"):
        return _recorded(kind, expression)
    if kind not in _EDITS:
        return _from_source(kind, expression)
    if kind == "fiddler":
        with called_by(f"--config={directive}", cfg):
            _apply_fiddler(cfg, expression)
    else:
        with set_by(f"--config={directive}"):
            (apply_tag if kind == "tag" else apply_override)(cfg, expression)
    return cfg


def _recorded(kind: str, expression: str) -> fdl.Buildable:
    if not expression:
        raise UsageError("the path is empty; expected config_file:runs/NAME/config.json or run:DIR")
    path = os.path.expanduser(expression)  # no shell does it behind a colon
    if kind == "run":
        if Path(path).is_file():
            raise UnknownName(
                f"{path} is a file, not the directory of a run", "run", near=["config_file"]
            )
        return load_run(path)
    if (Path(path) / "config.json").is_file():
        refuse_foreign(Path(path) / "config.json")
        raise UnknownName(f"{path} is the directory of a run", "config_file", near=["run"])
    if Path(path).is_dir():
        raise UsageError(f"{path} is a directory, not a file")
    return load(path)


def _from_source(name: str, expression: str) -> fdl.Buildable:
    if not expression:
        raise UsageError(f"the path is empty; expected {name}:PATH")
    return registry.sources()[name](os.path.expanduser(expression))


def _kind(directive: str) -> str:
    kind, colon, _ = directive.partition(":")
    known = [*_BASES, *registry.sources(), *_EDITS]
    if colon and kind in known:
        return kind
    expected = f"expected {one_of(f'{k}:...' for k in known)}"
    if colon:
        raise UnknownName(expected, kind, known)
    if near := with_kind(directive):
        raise UnknownName(f"{expected}; did you mean {near[0]!r}?", directive, near=near)
    missing = "; there is no such file or directory either" if directive else ""
    raise UsageError(expected + missing)


def _try(before: list[str], directive: str, error: UsageError) -> str:
    """Return a flag with a similar name that works, or a command that lists the names."""
    if isinstance(error, MissingImport):
        return shlex.join([error.flag])
    if isinstance(error, ForeignFile):
        return error.advice
    if before and isinstance(error, UnknownName) and f"{error.name}=" in directive:
        meant = as_recipe_argument(before[0], directive)
        if meant is not None and _is_right([meant, *before[1:]]):
            return shlex.join([f"--config={meant}"])
    if isinstance(error, UnknownName) and error.name:
        head, found, tail = directive.rpartition(error.name)
        for name in error.near if found else ():
            instead = f"{head}{name}{tail}"
            # Most commands have a default base, which an edit without one applies to.
            any_base = [f"config:{recipe}" for recipe in list(registry.recipes())[:1]]
            base = before or ([] if is_base(instead) else any_base)
            if _is_right([*base, instead]):
                return shlex.join([f"--config={instead}"])
    kind, _, expression = directive.partition(":")
    command = ["nanigpt", "show", *registry.import_flags(), *(f"--config={d}" for d in before)]
    if before and kind == "set":
        return shlex.join([*command, "--format=flat"])
    if not expression and "/" in directive:
        kind, expression = "run", directive
    if kind in ("run", "config_file", *registry.sources()) and expression:
        path = Path(expression).expanduser()
        if not (path / "config.json").exists() and not path.is_file():
            return shlex.join(["ls", str(path if path.is_dir() else path.parent)])
    return shlex.join([*command, "--config=help"])


def _is_right(directives: list[str]) -> bool:
    try:
        cfg = None
        for i, directive in enumerate(directives):
            cfg = _apply(cfg, directive, directives[0] if i else None)
    except UsageError:
        return False
    return True


def _recipe(expression: str) -> fdl.Buildable:
    call = Call.parse(expression)
    # Without arguments, the recipe's own line says where a value comes from.
    edited = bool(call.args or call.kwargs)
    with called_by(f"--config=config:{expression}") if edited else contextlib.nullcontext():
        cfg = _call("recipe", call, registry.find_recipe(call.name))
    if not isinstance(cfg, fdl.Buildable):
        raise UsageError(f"recipe {call.name} returned {type(cfg).__name__}, not a config")
    return cfg


def _apply_fiddler(cfg: fdl.Buildable, expression: str) -> None:
    call = Call.parse(expression)
    if _call("fiddler", call, registry.find_fiddler(call.name), cfg) is not None:
        raise UsageError(f"fiddler {call.name} returned a value; expected an edit in place")


def _call(kind: str, call: Call, function: Callable[..., Any], *first: Any) -> Any:
    try:
        return call.apply(function, *first)
    except UsageError:
        raise
    except Exception as error:  # it is written by users, and may not fit this config
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{kind} {call.name} failed at {Path(line.filename).name}:{line.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error

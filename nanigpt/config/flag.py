"""The `--config` flag: directives in command-line order, all or nothing."""

from pathlib import Path

import fiddle as fdl
from absl import flags
from fiddle.absl_flags import FiddleFlag

from nanigpt.config import registry
from nanigpt.config.call import Call
from nanigpt.config.overrides import apply_override, apply_tag
from nanigpt.config.record import load
from nanigpt.config.run_config import load_run
from nanigpt.errors import UsageError

_BASES = ("config", "config_file", "run")
_EDITS = ("fiddler", "set", "tag")


class ConfigFlag(FiddleFlag):
    """`config:RECIPE`, `config_file:PATH`, `run:DIR`; `fiddler:NAME(args)`, `set:PATH=VALUE`,
    `tag:TAG=VALUE`.

    Names come from the registry only. A failed directive leaves nothing half done: reading the
    value again fails again.

    Args:
        default_directive: the base that stands where the first directive is not one.
    """

    def __init__(self, *args, default_directive: str | None = None, **kwargs):
        self._default_directive = default_directive
        super().__init__(*args, default_module=registry, **kwargs)

    @property
    def directives(self) -> list[str]:
        """All directives, the default base included."""
        given = list(self.all_arguments)
        if self._default_directive and (not given or _kind(given[0]) not in _BASES):
            return [self._default_directive, *given]
        return given

    @property
    def value(self) -> fdl.Buildable | None:
        if self._remaining_directives or (self._value is None and self._default_directive):
            self._value = compose(self.directives)
            self._remaining_directives = []
        return self._value

    @value.setter
    def value(self, value: fdl.Buildable | None) -> None:
        self._value = value


def define_config_flag(values: flags.FlagValues, *, default_directive: str | None = None) -> None:
    """Defines `--config` among `values`."""
    flag = ConfigFlag(
        name="config",
        default=None,
        default_directive=default_directive,
        parser=flags.ArgumentParser(),
        serializer=None,
        help_string=(
            "config:RECIPE | config_file:PATH | run:DIR, then any of fiddler:NAME(args), "
            "set:PATH=VALUE, tag:TAG=VALUE; repeat the flag, order counts"
        ),
    )
    flags.DEFINE_flag(flag, flag_values=values)


def compose(directives: list[str]) -> fdl.Buildable:
    """The config that the directives describe: one base, then edits in order.

    Raises:
        UsageError: a directive is wrong; the message begins with it.
    """
    cfg = None
    for i, directive in enumerate(directives):
        try:
            kind = _kind(directive)
            expression = directive.partition(":")[2]
            if kind in _BASES and i > 0:
                raise UsageError(f"a second base; {directives[0]!r} came before")
            if kind not in _BASES and i == 0:
                raise UsageError("expected config:RECIPE, config_file:PATH or run:DIR first")
            if kind == "config":
                cfg = _recipe(expression)
            elif kind == "config_file":
                cfg = load(expression)
            elif kind == "run":
                cfg = load_run(expression)
            elif kind == "fiddler":
                _apply_fiddler(cfg, expression)
            elif kind == "tag":
                apply_tag(cfg, expression)
            else:
                apply_override(cfg, expression)
        except UsageError as error:
            raise UsageError(f"--config={directive}: {error}") from error
    if cfg is None:
        raise UsageError("--config: expected config:RECIPE, config_file:PATH or run:DIR")
    return cfg


def recipe_name(directives: list[str]) -> str:
    """A name for runs of these directives: that of the recipe or of the recorded run."""
    expression = directives[0].partition(":")[2]
    if _kind(directives[0]) == "config":
        return Call.parse(expression).name
    path = Path(expression).resolve()
    if _kind(directives[0]) == "run":
        return path.name
    return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


def _kind(directive: str) -> str:
    kind, colon, _ = directive.partition(":")
    known = [*_BASES, *_EDITS]
    if not colon or kind not in known:
        raise UsageError(
            f"expected one of {', '.join(f'{k}:...' for k in known)}"
            + (f"; {registry.nearest(kind, known)}" if colon else "")
        )
    return kind


def _recipe(expression: str) -> fdl.Buildable:
    call = Call.parse(expression)
    cfg = call.apply(registry.find_recipe(call.name))
    if not isinstance(cfg, fdl.Buildable):
        raise UsageError(f"recipe {call.name} returned {type(cfg).__name__}, not a config")
    return cfg


def _apply_fiddler(cfg: fdl.Buildable, expression: str) -> None:
    call = Call.parse(expression)
    result = call.apply(registry.find_fiddler(call.name), cfg)
    if result is not None:
        raise UsageError(f"fiddler {call.name} returned a value; expected an edit in place")

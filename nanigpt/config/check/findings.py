"""Something wrong at a place of a config, and the report of all that is wrong."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import fiddle as fdl

from nanigpt.config.check.mend import flags_that_set
from nanigpt.config.compose.hints import as_recipe_argument
from nanigpt.config.fold import Path, fold, path_text
from nanigpt.config.locate import owner
from nanigpt.config.record.provenance import origin
from nanigpt.config.registry import import_flags
from nanigpt.problems import show


@dataclass(frozen=True)
class Finding:
    """Something wrong at a path.

    Attributes:
        path: argument or node that is wrong; the root's is empty.
        text: rest of the sentence after the path: `=6: expected 8`, `: required`. One that begins
            otherwise is the whole sentence.
        advice: how to mend it, in words.
        settings: paths and the values that mend it, all of them together.
        blamed: arguments of which the report says who set them; by default that at `path`.
    """

    path: Path
    text: str
    advice: str = ""
    settings: tuple[tuple[Path, Any], ...] = ()
    blamed: tuple[Path, ...] | None = None

    def __str__(self) -> str:
        return _sentence([self.path], self.text)


def report(
    cfg: fdl.Buildable, findings: Iterable[Finding], directives: Sequence[str] | None = None
) -> str:
    """Write everything that is wrong: where, what was expected, who set it, and how to mend it.

    Equal findings of several places are one line.

    Args:
        directives: what the command line said; None stands for a config from Python.
    """
    groups: dict[Any, list[Finding]] = {}
    for finding in findings:
        values = tuple(show(value) for _, value in finding.settings)
        key = (finding.text, _who(cfg, finding), values or finding.advice)
        groups.setdefault(key, []).append(finding)
    told = []
    for (text, who, _), group in groups.items():
        sentence, advice = _sentence(fold(f.path for f in group), text), group[0].advice
        flags = _flags(cfg, group)
        line = sentence if flags or not advice else f"{sentence}; {advice}"
        told.append((f"{line}  <- {', '.join(who)}" if who else line, flags))
    lines = [f"{len(told)} problems:"] if len(told) > 1 else []
    indent = "  " if lines else ""
    for line, flags in told:
        lines.append(indent + line)
        if flags:
            lines.append(f"{indent}  try: {shlex.join(flags)}")
    if directives is not None and not any(flags for _, flags in told):
        given = [d for d in directives[1:] if any(f"--config={d}" in line for line, _ in told)]
        meant = [as_recipe_argument(directives[0], d) for d in given]
        if len(given) == 1 and meant[0] is not None:
            return "\n".join([*lines, f"  try: {shlex.join([f'--config={meant[0]}'])}"])
    if directives is not None and not all(flags for _, flags in told):
        given = [*import_flags(), *(f"--config={d}" for d in directives)]
        command = ["nanigpt", "show", *given]
        lines.append(f"  try: {shlex.join([*command, '--format=flat', '--why'])}")
    return "\n".join(lines)


def _sentence(paths: list[Path], text: str) -> str:
    places = ", ".join(path_text(path) for path in paths)
    return f"{places or 'the root'}{text}" if places or text.startswith((":", "=")) else text


def _who(cfg: fdl.Buildable, finding: Finding) -> tuple[str, ...]:
    """Return the directives that set the value, or else the line of the recipe that did."""
    blamed = (finding.path,) if finding.blamed is None else finding.blamed
    origins = []
    for path in blamed:
        if place := owner(cfg, path):
            origins.append(origin(*place))
    directives = [origin for origin in origins if origin.startswith("--config=")]
    if not directives and (finding.blamed is None or finding.text.startswith("=")):
        directives = [origin for origin in origins[:1] if origin]
    return tuple(dict.fromkeys(directives))


def _flags(cfg: fdl.Buildable, group: list[Finding]) -> list[str]:
    """Return flags that mend a group of equal findings; none where no flags do."""
    by_value: dict[str, tuple[list[Path], Any]] = {}
    for finding in group:
        for path, value in finding.settings:
            by_value.setdefault(repr(value), ([], value))[0].append(path)
    flags = []
    for paths, value in by_value.values():
        found = flags_that_set(cfg, list(dict.fromkeys(paths)), value)
        if not found:
            return []
        flags += found
    return flags

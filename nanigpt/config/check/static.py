"""Mistakes in a config that can be found before anything is built.

Each check looks at one node and yields findings.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish

from nanigpt.config.check.findings import Finding
from nanigpt.config.check.slots import element, hints, items, type_findings
from nanigpt.config.fold import Path
from nanigpt.config.paths import Element, parse_path
from nanigpt.config.record.file import unrecordable
from nanigpt.config.record.fingerprint import nameless
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.errors import UsageError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def problems(cfg: fdl.Buildable) -> list[Finding]:
    """Find mistakes that show before anything is built.

    These are missing arguments, wrong types, nodes shared by accident, lost tags, and values that
    have no name.
    """
    return [finding for _, finding in static_findings(cfg)]


def static_findings(cfg: fdl.Buildable) -> list[tuple[int | None, Finding]]:
    """Return `problems`, each with the id of the node that cannot be built because of it."""
    found: list[tuple[int | None, Finding]] = []
    try:
        for node, path in daglish.iterate(cfg):
            if isinstance(node, fdl.Buildable):
                where = elements(cfg, path)
                for check, breaks in _CHECKS:
                    found += [(id(node) if breaks else None, f) for f in check(node, where)]
        found += [(None, _parsed(text)) for text in nameless(cfg)]
    except RecursionError:
        return [(id(cfg), Finding((), f": the config {TOO_DEEP}"))]
    return list({finding: (broken, finding) for broken, finding in found}.values())


def record_findings(cfg: fdl.Buildable) -> list[Finding]:
    """Find values that a record of a run could not hold, except those that `problems` finds."""
    told = {text.partition(": ")[0] for text in nameless(cfg)}
    return [_parsed(text) for text in unrecordable(cfg) if text.partition(": ")[0] not in told]


def elements(cfg: fdl.Buildable, path: daglish.Path) -> Path:
    """Write a path of daglish in elements of `parse_path`.

    They tell positional arguments from a list's indices.
    """
    found: list[Element] = []
    value: Any = cfg
    for step in path:
        if isinstance(step, daglish.Attr):
            found.append(step.name)
        elif isinstance(step, daglish.Key):
            found.append((step.key,))
        else:
            found.append(element(step.index) if isinstance(value, fdl.Buildable) else step.index)
        value = step.follow(value)
    return tuple(found)


def _parsed(text: str) -> Finding:
    """Read the finding of a message that begins with a path."""
    where, _, rest = text.partition(": ")
    try:
        return Finding(tuple(parse_path(where)), f": {rest}")
    except UsageError:
        return Finding((), f": {text.removeprefix('the root: ')}")


def _annotations(node: fdl.Buildable, where: Path) -> Iterator[Finding]:
    """Fiddle drops every tag of a signature, silently, when one annotation cannot be resolved."""
    function = fdl.get_callable(node)
    try:
        hints(function)
    except Exception as error:  # whatever evaluating an annotation may raise
        yield Finding(
            where,
            f": an annotation of {function.__name__} cannot be resolved "
            f"({error}), so its tags are lost; import the name outside of TYPE_CHECKING",
        )


def _missing(node: fdl.Buildable, where: Path) -> Iterator[Finding]:
    if isinstance(node, fdl.Partial):  # it may be given the rest when it is called
        return
    given = fdl.ordered_arguments(node)
    # Not inspect.signature: builtins such as dict have none.
    for i, (name, parameter) in enumerate(node.__signature_info__.parameters.items()):
        known = name in given or (parameter.kind is parameter.POSITIONAL_ONLY and i in given)
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC and not known:
            text = f": required by {fdl.get_callable(node).__name__}, not set"
            yield Finding((*where, name), text)


def _sharing(node: fdl.Buildable, where: Path) -> Iterator[Finding]:
    """Find modules that all calls of a Partial would share.

    A Partial builds a Config below it once and gives the same object to every call.
    """
    if isinstance(node, fdl.Config):
        return
    for path, module in _modules_below(node, where, set()):
        yield Finding(
            path,
            f": {fdl.get_callable(module).__name__} below {type(node).__name__} would be "
            "one module shared by every call; use fdl.ArgFactory, or leave it to the caller",
        )


def _modules_below(value: Any, path: Path, met: set[int]) -> Iterator[tuple[Path, fdl.Config]]:
    """Yield the outermost configs of modules below a node, with their paths.

    Modules below another Partial are left out: that one reports them.
    """
    if isinstance(value, fdl.Buildable):
        children = [(element(name), v) for name, v in fdl.ordered_arguments(value).items()]
    else:
        children = list(items(value)) if isinstance(value, (list, tuple, dict)) else []
    for key, child in children:
        if id(child) in met:
            continue
        met.add(id(child))
        made = fdl.get_callable(child) if isinstance(child, fdl.Config) else None
        if isinstance(made, type) and issubclass(made, torch.nn.Module):
            yield (*path, key), child
        elif made is not None or not isinstance(child, fdl.Buildable):
            yield from _modules_below(child, (*path, key), met)


_CHECKS = ((_annotations, False), (_missing, True), (type_findings, True), (_sharing, False))

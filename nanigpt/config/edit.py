"""The difference of two configs as a fiddler: Python that turns one into the other.

Nodes of the two that stand at the same place and build the same thing are one node, which the
fiddler edits; other nodes of the new config are made. Linear in the size of the configs.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.leaves import head, holds_nodes
from nanigpt.config.paths import join
from nanigpt.config.registry import fiddler
from nanigpt.config.source import Scope, Writer, flat
from nanigpt.errors import UsageError

_INDEX = re.compile(r"\[(\d+)\]")


def to_fiddler(old: fdl.Buildable, new: fdl.Buildable) -> str:
    """A module whose fiddler `edit(cfg)` turns a config equal to `old` into one equal to `new`,
    sharing and tags included.

    Raises:
        UsageError: the roots build different things, which no edit in place can change, or a value
            cannot be written.
    """
    if not _alike(old, new):
        raise UsageError(
            f"the roots differ, {head(old)} and {head(new)}: no edit in place changes that; "
            "nanigpt show --format=python writes the whole of the second"
        )
    statements = _Edits(old, new)
    title = f'"""Turns config {fingerprint(old)[:8]} into {fingerprint(new)[:8]}."""'
    return "\n".join(
        [
            title,
            "",
            *statements.writer.imports.lines(),
            "",
            "",
            "@fiddler",
            f"def edit(cfg: fdl.{type(old).__name__}) -> None:",
            f"    {title}",
            *statements.lines(),
            "",
        ]
    )


class _Edits:
    """Statements in an order in which every path still leads where it did in the old config:
    plain values first, then what holds nodes, inner arguments before outer ones."""

    def __init__(self, old: fdl.Buildable, new: fdl.Buildable):
        self._old_of: dict[int, fdl.Buildable] = {}  # by id of the new node
        self._paired: set[int] = set()  # ids of old nodes
        self._pairs: list[tuple[fdl.Buildable, fdl.Buildable, str]] = []
        self._containers: collections.Counter[int] = collections.Counter()
        self.writer = Writer(new)
        self.writer.imports.name(fiddler, "")
        self._match(old, new, "cfg")
        self._values: dict[tuple[str, str], list[str]] = {}
        self._tags: list[str] = []
        self._body = Scope()
        for before, after, path in reversed(self._pairs):
            self._arguments(before, after, path)
            have, want = before.__argument_tags__, after.__argument_tags__
            self._tags.extend(self.writer.tag_statements(path, have, want))

    def lines(self) -> Iterator[str]:
        for variable, path in self.writer.captured.values():
            yield f"    {variable} = {path}"
        loops: dict[str, list[str]] = {}
        for (_, value), paths in reversed(self._values.items()):
            loop, assignment = _assignment(paths, value)
            loops.setdefault(loop, []).append(assignment)
        for loop, assignments in loops.items():
            yield from ([f"    {loop}"] if loop else [])
            indent = "        " if loop else "    "
            yield from (f"{indent}{assignment}" for assignment in assignments)
        yield from (f"    {statement}" for statement in self._tags)
        yield from self._body.lines

    def _match(self, before: Any, after: Any, path: str) -> None:
        """Pairs nodes from here on; what is paired with another already stays so."""
        if isinstance(before, fdl.Buildable):
            if not _alike(before, after) or id(before) in self._paired or id(after) in self._old_of:
                return
            self._old_of[id(after)] = before
            self._paired.add(id(before))
            self.writer.known[id(after)] = path
            self._pairs.append((before, after, path))
            given = fdl.ordered_arguments(after)
            for name, value in fdl.ordered_arguments(before).items():
                if name in given:
                    self._match(value, given[name], join(path, name))
        elif isinstance(before, (list, tuple, dict)) and type(before) is type(after):
            self._containers[id(before)] += 1
            keys = before if isinstance(before, dict) else range(min(len(before), len(after)))
            for key in keys:
                if not isinstance(after, dict) or key in after:
                    self._match(before[key], after[key], f"{path}[{key!r}]")

    def _arguments(self, before: fdl.Buildable, after: fdl.Buildable, path: str) -> None:
        old, new = fdl.ordered_arguments(before), fdl.ordered_arguments(after)
        for name in old:
            if name not in new:
                self._body.add(f"del {join(path, name)}")
        for name, value in reversed(new.items()):
            self._value(old.get(name, fdl.NO_VALUE), value, join(path, name))

    def _value(self, before: Any, after: Any, target: str) -> None:
        """Statements after which `target`, which is `before`, is `after`."""
        if self._same(before, after):
            return
        held = [v for v in (before, after) if isinstance(v, fdl.Buildable) or holds_nodes(v)]
        if not held:
            value = flat(self._write(after))
            key = _INDEX.sub("[]", target, count=1)
            self._values.setdefault((key, value), []).append(target)
            return
        editable = type(before) is type(after) and self._containers[id(before)] == 1
        if editable and isinstance(before, list):
            both = min(len(before), len(after))
            for i in range(both):
                self._value(before[i], after[i], f"{target}[{i}]")
            if both < len(before):
                self._body.add(f"{target} = {target}[:{both}]")
            elif both < len(after):
                self._body.add(f"{target} += ", self._write(after[both:]))
        elif editable and isinstance(before, dict):
            for key in before:
                if key not in after:
                    self._body.add(f"del {target}[{key!r}]")
            for key, value in after.items():
                if key in before:
                    self._value(before[key], value, f"{target}[{key!r}]")
                else:
                    self._body.add(f"{target}[{key!r}] = ", self._write(value))
        else:
            self._body.add(f"{target} = ", self._write(after))

    def _write(self, value: Any) -> Any:
        return self.writer.value(value, self._body, "cfg")

    def _same(self, before: Any, after: Any) -> bool:
        """Whether nothing needs to be assigned; what is inside of paired nodes is edited there."""
        if isinstance(after, fdl.Buildable):
            return id(after) in self._old_of and self._old_of[id(after)] is before
        if type(before) is not type(after):
            return False
        if isinstance(after, dict):
            return before.keys() == after.keys() and all(
                self._same(before[key], after[key]) for key in after
            )
        if isinstance(after, (list, tuple)):
            return len(before) == len(after) and all(map(self._same, before, after))
        return before == after


def _alike(before: Any, after: Any) -> bool:
    """Whether two nodes build the same thing in the same way."""
    return (
        isinstance(before, fdl.Buildable)
        and type(before) is type(after)
        and fdl.get_callable(before) is fdl.get_callable(after)
    )


def _assignment(paths: list[str], value: str) -> tuple[str, str]:
    """A loop over elements whose paths differ in their first index only, and its body; no loop for
    one path alone."""
    if len(paths) == 1:
        return "", f"{paths[0]} = {value}"
    numbers = sorted(int(_INDEX.search(path)[1]) for path in paths)
    before, _, rest = _INDEX.split(paths[0], maxsplit=1)
    step = numbers[1] - numbers[0]
    if rest and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
        bounds = f"{numbers[0]}:{numbers[-1] + 1}" + (f":{step}" if step > 1 else "")
        return f"for each in {before}[{bounds}]:", f"each{rest} = {value}"
    return f"for i in {numbers}:", f"{before}[i]{rest} = {value}"

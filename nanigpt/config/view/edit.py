"""The difference of two configs as a fiddler: Python that turns one into the other.

Nodes of the two that stand at the same place and build the same thing are one node, which the
fiddler edits; other nodes of the new config are made. Linear in the size of the configs.
"""

import collections
import inspect
import keyword
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from nanigpt.config.flatten import head, holds_nodes
from nanigpt.config.paths import Element, first_index
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.recursion import refuses_depth
from nanigpt.config.registry import fiddler
from nanigpt.config.sharing import references
from nanigpt.config.view.source import Scope, Writer, flat
from nanigpt.errors import UsageError

Path = tuple[Element, ...]


@refuses_depth
def to_fiddler(old: fdl.Buildable, new: fdl.Buildable) -> str:
    """Return a module whose fiddler `edit(cfg)` turns a config equal to `old` into `new`.

    The result has the sharing and tags of `new`, too.

    Raises:
        UsageError: The roots build different things, which no edit in place can change, or a value
            cannot be written.
    """
    if not _alike(old, new):
        raise UsageError(
            f"the roots differ, {head(old)} and {head(new)}: no edit in place changes that; "
            "nanigpt show --format=python writes the whole of the second"
        )
    statements = _Edits(old, new)
    body = list(statements.lines())  # completes the imports
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
            *body,
            "",
        ]
    )


class _Edits:
    """Statements in an order that keeps every path of the old config valid.

    Plain values come first, then values that hold nodes, and inner arguments before outer ones.
    """

    def __init__(self, old: fdl.Buildable, new: fdl.Buildable):
        self._old_of: dict[int, fdl.Buildable] = {}  # by id of the new node
        self._paired: set[int] = set()  # ids of old nodes
        self._pairs: list[tuple[fdl.Buildable, fdl.Buildable, Path]] = []
        # Lists and dicts that stand at the same place, by both ids: at how many places.
        self._containers: collections.Counter[tuple[int, int]] = collections.Counter()
        self._old_references = references(old)
        self.writer = Writer(new)
        self.writer.imports.name(fiddler, "")
        self._body = Scope()
        self._shared: list[tuple[list[Any] | dict[Any, Any], Any, Path]] = []
        self._match(old, new, ())
        # What is written anew may hold a list that stays as it is: then it is that very list.
        for before, after, path in self._shared:
            if self._same(before, after):
                self.writer.known[id(after)] = self._source(path)
        self._values: dict[tuple[Path, str], list[Path]] = {}
        self._tags: list[str] = []
        for before, after, path in reversed(self._pairs):
            self._arguments(before, after, path)
            have, want = before.__argument_tags__, after.__argument_tags__
            self._tags.extend(self.writer.tag_statements(self._source(path), have, want))

    def lines(self) -> Iterator[str]:
        for variable, path in self.writer.captured.values():
            yield f"    {variable} = {path}"
        loops: dict[str, list[str]] = {}
        for (_, value), paths in reversed(self._values.items()):
            loop, assignment = self._loop(paths, value)
            loops.setdefault(loop, []).append(assignment)
        for loop, assignments in loops.items():
            yield from ([f"    {loop}"] if loop else [])
            indent = "        " if loop else "    "
            yield from (f"{indent}{assignment}" for assignment in assignments)
        yield from (f"    {statement}" for statement in self._tags)
        yield from self._body.lines

    def _match(self, before: Any, after: Any, path: Path) -> None:
        """Pairs nodes from here on; what is paired with another already stays so."""
        if isinstance(before, fdl.Buildable):
            if not _alike(before, after) or id(before) in self._paired or id(after) in self._old_of:
                return
            self._old_of[id(after)] = before
            self._paired.add(id(before))
            self.writer.known[id(after)] = self._source(path)
            self._pairs.append((before, after, path))
            given = fdl.ordered_arguments(after)
            for name, value in fdl.ordered_arguments(before).items():
                if name in given:
                    self._match(value, given[name], (*path, name))
        elif isinstance(before, (list, tuple, dict)) and type(before) is type(after):
            self._containers[id(before), id(after)] += 1
            if self._containers[id(before), id(after)] > 1 and not isinstance(before, tuple):
                return
            if not isinstance(before, tuple) and self._is_shared(before, after):
                self._shared.append((before, after, path))
            if isinstance(before, dict):
                for key in before:
                    if key in after:
                        self._match(before[key], after[key], (*path, (key,)))
            else:
                for i, (one, other) in enumerate(zip(before, after, strict=False)):
                    self._match(one, other, (*path, i))

    def _arguments(self, before: fdl.Buildable, after: fdl.Buildable, path: Path) -> None:
        old, new = fdl.ordered_arguments(before), fdl.ordered_arguments(after)
        rest = [_variadic(after, arguments) for arguments in (old, new)]
        if rest[0].keys() != rest[1].keys():  # Fiddle changes their number all at once
            start = min({**rest[0], **rest[1]})
            values = self._write(list(rest[1].values()))
            self._body.add(f"{self._source(path)}[{start}:] = ", values)
            changed = rest[0] | rest[1]
            old, new = ({n: v for n, v in o.items() if n not in changed} for o in (old, new))
        for name in old:
            if name not in new:
                self._body.add(self._deletion((*path, name)))
        for name, value in reversed(new.items()):
            self._value(old.get(name, fdl.NO_VALUE), value, (*path, name))

    def _value(self, before: Any, after: Any, target: Path) -> None:
        """Statements after which `target`, which is `before`, is `after`."""
        if self._same(before, after):
            return
        held = [v for v in (before, after) if isinstance(v, fdl.Buildable) or holds_nodes(v)]
        if not held and not self._shares(after):
            value = flat(self._write(after))
            self._values.setdefault((_without_index(target), value), []).append(target)
            return
        editable = type(before) is type(after) and not self._is_shared(before, after)
        if editable and isinstance(before, list):
            both = min(len(before), len(after))
            for i in range(both):
                self._value(before[i], after[i], (*target, i))
            text = self._source(target)
            if both < len(before):
                self._assign(target, f"{text}[:{both}]")
            elif both < len(after):
                self._assign(target, self._write(after[both:]), operator="+=")
        elif editable and isinstance(before, dict):
            for key in before:
                if key not in after:
                    self._body.add(self._deletion((*target, (key,))))
            for key, value in after.items():
                if key in before:
                    self._value(before[key], value, (*target, (key,)))
                else:
                    self._assign((*target, (key,)), self._write(value))
        else:
            self._assign(target, self._write(after))

    def _write(self, value: Any) -> Any:
        return self.writer.value(value, self._body, "cfg")

    def _same(self, before: Any, after: Any) -> bool:
        """Whether nothing needs to be assigned; what is inside of paired nodes is edited there."""
        if isinstance(after, fdl.Buildable):
            return id(after) in self._old_of and self._old_of[id(after)] is before
        if type(before) is not type(after):
            return False
        if isinstance(after, (list, dict)) and self._is_shared(before, after):
            places = self._containers[id(before), id(after)]
            if not places == self._old_references[id(before)] == self._times(after):
                return False
        if isinstance(after, dict):
            keys = [{(type(key), key) for key in side} for side in (before, after)]
            return keys[0] == keys[1] and all(self._same(before[key], after[key]) for key in after)
        if isinstance(after, (list, tuple)):
            return len(before) == len(after) and all(map(self._same, before, after))
        return before == after

    def _is_shared(self, before: Any, after: Any) -> bool:
        return self._old_references[id(before)] > 1 or self._times(after) > 1

    def _times(self, after: Any) -> int:
        return self.writer.sharing.references[id(after)]

    def _shares(self, after: Any) -> bool:
        """Whether a list or dict in the new value is held elsewhere too."""
        if not isinstance(after, (list, tuple, dict)):
            return False
        shared = not isinstance(after, tuple) and self._times(after) > 1
        return shared or any(
            map(self._shares, after.values() if isinstance(after, dict) else after)
        )

    def _source(self, path: Path, root: str = "cfg") -> str:
        """Python that leads to a path of the config."""
        text = root
        for element in path:
            if isinstance(element, tuple):
                text += f"[{self._key(element)}]"
            elif isinstance(element, int):
                text += f"[{element}]"
            else:
                name = str(element)
                text = f"{text}.{name}" if _is_name(name) else f"getattr({text}, {name!r})"
        return text

    def _key(self, element: tuple[Any]) -> str:
        return flat(self._write(element[0]))

    def _assign(self, path: Path, value: Any, operator: str = "=") -> None:
        if isinstance(path[-1], str) and not _is_name(path[-1]):
            parent = self._source(path[:-1])
            if operator == "+=":
                value = f"{self._source(path)} + {flat(value)}"
            self._body.add(f"setattr({parent}, {path[-1]!r}, {flat(value)})")
        else:
            self._body.add(f"{self._source(path)} {operator} ", value)

    def _deletion(self, path: Path) -> str:
        if isinstance(path[-1], str) and not _is_name(path[-1]):
            return f"delattr({self._source(path[:-1])}, {path[-1]!r})"
        return f"del {self._source(path)}"

    def _loop(self, paths: list[Path], value: str) -> tuple[str, str]:
        """Return a loop over elements whose paths differ only in their first index, and its body.

        A single path needs no loop.
        """

        def assignment(path: Path, root: str) -> str:
            if isinstance(path[-1], str) and not _is_name(path[-1]):
                return f"setattr({self._source(path[:-1], root)}, {path[-1]!r}, {value})"
            return f"{self._source(path, root)} = {value}"

        if len(paths) == 1:
            return "", assignment(paths[0], "cfg")
        at = first_index(paths[0])
        assert at is not None  # paths that differ have an index
        numbers = sorted(index for path in paths if isinstance(index := path[at], int))
        elements, rest = self._source(paths[0][:at]), paths[0][at + 1 :]
        step = numbers[1] - numbers[0]
        if rest and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
            bounds = f"{numbers[0]}:{numbers[-1] + 1}" + (f":{step}" if step > 1 else "")
            return f"for each in {elements}[{bounds}]:", assignment(rest, "each")
        return f"for i in {numbers}:", assignment(rest, f"{elements}[i]") if rest else (
            f"{elements}[i] = {value}"
        )


def _without_index(path: Path) -> Path:
    """Equal for paths that differ in their first index only."""
    at = first_index(path)
    return path if at is None else (*path[:at], "[]", *path[at + 1 :])


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _variadic(node: fdl.Buildable, given: dict[str | int, Any]) -> dict[int, Any]:
    """Those of a node's arguments that its callable takes as *args, by their numbers."""
    kinds = [parameter.kind for parameter in node.__signature_info__.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return {}
    start = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return {n: value for n, value in given.items() if isinstance(n, int) and n >= start}


def _alike(before: Any, after: Any) -> bool:
    """Whether two nodes build the same thing in the same way."""
    return (
        isinstance(before, fdl.Buildable)
        and type(before) is type(after)
        and fdl.get_callable(before) is fdl.get_callable(after)
    )

"""The axes of a sweep on the command line.

An axis is a directive of `--config` with a list or a range in place of a value:

tag:LearningRate=[1e-4,3e-4]            config:[llama3_debug,qwen3_debug]
set:optimizer.betas[1]=[0.95,0.99]      config:llama3_debug(dim=[128,256])
fiddler:[muon,none]                     fiddler:steps([100,200])

`zip(AXIS, AXIS)` gives values that go together. `when(DIRECTIVE, AXIS)` gives an axis that only
exists in trials in which an earlier axis gives this directive.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nanigpt.config.compose.call import Call
from nanigpt.config.compose.items import split_items
from nanigpt.config.compose.space import (
    RANGES,
    Axis,
    Point,
    Space,
    points,
    require_distinct,
)
from nanigpt.errors import UnknownName, UsageError

BASES = ("config", "config_file", "run")

_NONE = "none"  # among fiddlers, the variant without one
_FORMS = (
    "tag:TAG=[a,b], set:PATH=[a,b], config:[a,b], config:RECIPE(x=[a,b]), fiddler:[a,none] or "
    "fiddler:NAME([a,b])"
)

Pairs = tuple[tuple[str, str], ...]
"""Keys and their values."""


@dataclass(frozen=True)
class Template:
    """A directive with a gap for each key.

    Attributes:
        pieces: Texts around the gaps.
        keys: Keys of the gaps.
        when: Conditions under which the directive exists.
    """

    pieces: tuple[str, ...]
    keys: tuple[str, ...]
    when: Pairs = ()

    @property
    def kind(self) -> str:
        """The kind of the directive, such as `set`."""
        return self.pieces[0].partition(":")[0]

    def fill(self, point: Point) -> str:
        """Return the directive that has the values of a point."""
        values = [str(point[key]) for key in self.keys]
        return self.pieces[0] + "".join(map("".join, zip(values, self.pieces[1:], strict=True)))


@dataclass
class Axes:
    """The axes of a sweep, and the directives that they give.

    Attributes:
        axes: The axes.
        templates: The directives of each.
        texts: The flags that they were parsed from.
    """

    axes: list[Axis] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def base(self) -> Template | None:
        """The axis of bases, if there is one."""
        return next((t for t in self.templates if t.kind in BASES), None)

    def edits(self, point: Point) -> list[str]:
        """Return the directives that a point adds to those of the sweep; a base stands first."""
        given = [t for t in self.templates if all(point.get(k) == v for k, v in t.when)]
        given.sort(key=lambda template: template.kind not in BASES)
        edits = [template.fill(point) for template in given]
        return [edit for edit in edits if edit != f"fiddler:{_NONE}"]


def parse_axes(texts: list[str]) -> Axes:
    """Parse the values of all flags `--sweep`.

    Values of lists stay text.

    Raises:
        UsageError: An axis has another form, or does not fit to an earlier one.
    """
    found = Axes()
    for text in texts:
        try:
            new = _parse(text.strip(), found)
            if found.base and new.base:
                raise UsageError("a trial has one base; give its variants as one axis")
            if any(template.kind in BASES and template.when for template in new.templates):
                raise UsageError("every trial needs a base, so its axis cannot be in when(...)")
            require_distinct([*found.axes, *new.axes])
        except UsageError as error:
            raise error.within(f"--sweep={text}") from error
        found.axes += new.axes
        found.templates += new.templates
        found.texts.append(text)
    return found


def axis_label(key: str) -> str:
    """Return the short name of a key: `LearningRate` for `tag:LearningRate`."""
    kind, _, name = key.partition(":")
    return f"{kind}{name}" if not name or name.isdigit() else name


def _parse(text: str, earlier: Axes) -> Axes:
    name, paren, inside = text.partition("(")
    name = name.strip()
    if not paren or name not in _COMBINED:
        return _directive(text, earlier)
    if not inside.endswith(")"):
        raise UsageError(f"expected {name}(...)")
    return _COMBINED[name](split_items(inside[:-1]), earlier)


def _zip(items: list[str], earlier: Axes) -> Axes:
    parts = Axes(list(earlier.axes), list(earlier.templates))
    for item in items:
        new = _parse(item, parts)
        parts.axes += new.axes
        parts.templates += new.templates
    axes = parts.axes[len(earlier.axes) :]
    if any(axis.when or len(axis.keys) > 1 for axis in axes):
        raise UsageError("zip takes plain axes, not another zip or when")
    require_distinct(axes)
    lists = [axis.space for axis in axes if isinstance(axis.space, tuple)]
    if len(lists) < max(len(axes), 2) or len(set(map(len, lists))) > 1:
        lengths = ", ".join(str(len(values)) for values in lists)
        raise UsageError(
            "zip needs two or more lists of equal length and no range; it has lists of length "
            f"{lengths or 'none'}"
        )
    keys = tuple(key for axis in axes for key in axis.keys)
    rows = tuple(zip(*lists, strict=True))
    return Axes([Axis(keys, rows)], parts.templates[len(earlier.templates) :])


def _when(items: list[str], earlier: Axes) -> Axes:
    if len(items) != 2:
        raise UsageError(f"expected when(DIRECTIVE, AXIS), not {len(items)} items")
    when = _condition(items[0], earlier)
    inner = _parse(items[1], earlier)
    return Axes(
        [replace(axis, when=(*when, *axis.when)) for axis in inner.axes],
        [replace(template, when=(*when, *template.when)) for template in inner.templates],
    )


def _condition(directive: str, earlier: Axes) -> Pairs:
    """Return the values of keys with which earlier axes give a directive."""
    listed: list[str] = []
    found: list[tuple[Pairs, Pairs]] = []
    for template in earlier.templates:
        own = [
            a for a in earlier.axes if a.when == template.when and set(a.keys) & set(template.keys)
        ]
        if not all(isinstance(axis.space, tuple) for axis in own):
            continue
        for point in points([replace(axis, when=()) for axis in own]):
            listed.append(template.fill(point))
            if listed[-1] == directive:
                found.append((template.when, tuple((key, point[key]) for key in template.keys)))
    if not found:
        problem = f"no list of an earlier axis gives {directive}"
        raise UnknownName(problem, directive, dict.fromkeys(listed))
    when, pairs = found[0]
    # The axis may be conditional itself, unless axes of several conditions have this value.
    return pairs if any(other == pairs for _, other in found[1:]) else (*when, *pairs)


_COMBINED: dict[str, Callable[[list[str], Axes], Axes]] = {"zip": _zip, "when": _when}


def _directive(text: str, earlier: Axes) -> Axes:
    kind, _, rest = text.partition(":")
    if kind in ("tag", "set"):
        name, equals, space = rest.partition("=")
        if name.strip() and equals:
            key = f"{kind}:{name.strip()}"
            return _axes([_space(space.strip())], (f"{key}=", ""), [key])
    elif kind in (*BASES, "fiddler"):
        if rest.startswith("[") and rest.endswith("]"):
            key = f"{kind}:"
            count = sum(template.kind == kind for template in earlier.templates)
            if kind == "fiddler" and count:
                key += str(count + 1)
            return _axes([_space(rest)], (f"{kind}:", ""), [key])
        name = rest.partition("(")[0]
        if kind in ("config", "fiddler") and name.isidentifier() and rest.endswith(")"):
            return _call(kind, rest)
    raise UsageError(f"expected {_FORMS}, where a range may stand for a list")


def _call(kind: str, text: str) -> Axes:
    """Parse `NAME(arguments)`, in which at least one argument is a list or a range."""
    name, _, inside = text[:-1].partition("(")
    pieces, keys, spaces = [f"{kind}:{name}("], [], []
    arguments = split_items(inside)
    for i, argument in enumerate(arguments):
        keyword = re.match(r"\s*(\w+)\s*=(?!=)\s*", argument)
        value = argument[keyword.end() :] if keyword else argument
        pieces[-1] += ", " if i else ""
        if value.startswith("[") or re.match(rf"({'|'.join(RANGES)})\(", value):
            place = f".{keyword[1]}" if keyword else f"[{i}]" if len(arguments) > 1 else ""
            keys.append(f"{kind}:{name}{place}")
            spaces.append(_space(value))
            pieces[-1] += f"{keyword[1]}=" if keyword else ""
            pieces.append("")
        else:
            pieces[-1] += argument
    pieces[-1] += ")"
    if not keys:
        raise UsageError(
            f"{kind}:{text} has one value of each argument, which --config sets; expected a list, "
            f"such as {kind}:{name}([a,b]) or {kind}:[a,b]"
        )
    return _axes(spaces, tuple(pieces), keys)


def _axes(spaces: list[Space], pieces: tuple[str, ...], keys: list[str]) -> Axes:
    axes = [Axis((key,), space) for key, space in zip(keys, spaces, strict=True)]
    return Axes(axes, [Template(pieces, tuple(keys))])


def _space(text: str) -> Space:
    """Parse `[a,b,c]` or a range."""
    if text.startswith("[") and text.endswith("]"):
        return tuple(split_items(text[1:-1]))
    if "(" not in text:
        kinds = ", ".join(f"{name}(low,high)" for name in RANGES)
        raise UsageError(
            f"{text!r} is one value, which --config sets; expected [a,b,c] or one of {kinds}"
        )
    call = Call.parse(text)
    if call.name not in RANGES:
        raise UnknownName(f"unknown range {call.name!r}", call.name, RANGES)
    space: Space = call.apply(RANGES[call.name])
    return space

"""What a command line may have meant: advice for messages."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import fiddle as fdl

from nanigpt.config import registry
from nanigpt.config.compose.call import Call
from nanigpt.config.paths import arguments, child, expand, join, parse_path
from nanigpt.config.sharing import references
from nanigpt.config.values import made_by_components
from nanigpt.errors import UsageError


def with_kind(text: str) -> list[str]:
    """Return directives that a text without a kind may stand for, the best first."""
    path = Path(text).expanduser()
    if (path / "config.json").is_file():
        return [f"run:{text}"]
    if path.is_file():
        return [f"config_file:{text}"]
    name, parenthesis, rest = text.partition("(")
    if "=" in name:
        return [f"set:{text}"]
    found = []
    for kind, known in (("config", registry.recipes()), ("fiddler", registry.fiddlers())):
        near = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        found += [f"{kind}:{other}{parenthesis}{rest}" for other in near]
    return found


def as_recipe_argument(base: str, directive: str) -> str | None:
    """Return the base with an argument that does what `set:...NAME=VALUE` may have meant.

    A size stands in many places of a config, and the recipe's argument sets them all. Return None
    if the base is no recipe, or if its recipe has no such argument.
    """
    kind, _, expression = base.partition(":")
    path, equals, text = directive.removeprefix("set:").partition("=")
    if kind != "config" or not directive.startswith("set:") or not equals:
        return None
    try:
        call = Call.parse(expression)
        name = str(parse_path(path)[-1])
        known = inspect.signature(registry.find_recipe(call.name)).parameters
    except UsageError:
        return None
    if name not in known or call.args:
        return None
    given = [*((key, value) for key, value in call.kwargs if key != name), (name, text)]
    return f"config:{call.name}({','.join(f'{key}={value}' for key, value in given)})"


def note_of_sharing(cfg: fdl.Buildable, assignment: str) -> str | None:
    """Say that an assignment to one element of a list reached a node that other elements share.

    Return None where it did not.
    """
    path, _, text = assignment.partition("=")
    *parents, last = parse_path(path)
    counts = references(cfg)
    found: list[tuple[Any, str, bool]] = [(cfg, "", False)]
    for element in parents:
        found = [
            (child(value, e, walked), join(walked, e), indexed or isinstance(value, list))
            for value, walked, indexed in found
            for e in expand(value, element, walked)
        ]
        reached = {id(value): sum(value is other for other, _, _ in found) for value, _, _ in found}
        for value, walked, indexed in found:
            shared = isinstance(value, fdl.Buildable) and counts[id(value)] > reached[id(value)]
            if shared and indexed:
                return (
                    f"{walked} is one node that {counts[id(value)]} places share, and all of them "
                    f"change; for one of its own: --config='set:{walked}="
                    f"{_exchange(value, {str(last): text} if element is parents[-1] else {})}'"
                )
    return None


def _exchange(node: fdl.Buildable, changed: dict[str, str]) -> str:
    """Return `@NAME(...)` for a node like this one, with some arguments changed."""
    made = fdl.get_callable(node)
    names = [name for name, (_, kind) in made_by_components() if kind is made]
    given = {str(key): value for key, value in fdl.ordered_arguments(node).items()}
    plain = all(isinstance(v, (bool, int, float, str, type(None))) for v in given.values())
    if len(names) != 1 or not plain or not changed.keys() <= arguments(node).keys():
        return f"@{names[0] if len(names) == 1 else 'NAME'}(...)"
    texts = {**{key: repr(value) for key, value in given.items()}, **changed}
    return f"@{names[0]}({','.join(f'{key}={text}' for key, text in texts.items())})"

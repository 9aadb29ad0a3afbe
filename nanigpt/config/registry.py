"""Recipes, fiddlers and component factories by name.

`@recipe`, `@fiddler` and `@component` register the functions of the packages `nanigpt.experiments`
and `nanigpt.fiddlers`, and of every module that another installed distribution names under the
entry point group `nanigpt`. A name from the command line is looked up here and nowhere else:
nothing is imported by a name that a user typed.

A module of recipes tells the family of its models by a constant: `FAMILY = "Llama 3"`.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from nanigpt.errors import UnknownName

_PACKAGES = ("nanigpt.experiments", "nanigpt.fiddlers")
_ENTRY_POINTS = "nanigpt"

_recipes: dict[str, Callable] = {}
_fiddlers: dict[str, Callable] = {}
_components: dict[str, Callable] = {}
_upgrades: list[Callable[[Any], None]] = []
_moved: dict[str, str] = {}
_loaded = False


def recipe(function: Callable) -> Callable:
    """Register a function that returns a run's config: `--config=config:NAME`."""
    return _register(_recipes, "recipe", function)


def fiddler(function: Callable) -> Callable:
    """Register a function that edits a run's config in place: `--config=fiddler:NAME(...)`."""
    return _register(_fiddlers, "fiddler", function)


def component(function: Callable) -> Callable:
    """Register a function that returns a component's config: `set:PATH=@NAME(...)`."""
    return _register(_components, "component", function)


def upgrade(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Register a function that edits a record of an earlier version in place, once it was read."""
    if function not in _upgrades:
        _upgrades.append(function)
    return function


def moved(places: dict[str, str]) -> None:
    """Register new places of modules, or of names in modules, that records have at old ones."""
    _moved.update(places)


def upgrades() -> list[Callable[[Any], None]]:
    """Return all functions that upgrade records of earlier versions."""
    _load()
    return list(_upgrades)


def place_today(module: str, name: str) -> tuple[str, str]:
    """Return module and name of what was `module.name` in an earlier version."""
    _load()
    if f"{module}.{name}" in _moved:
        module, _, name = _moved[f"{module}.{name}"].rpartition(".")
    return _moved.get(module, module), name


def recipes() -> dict[str, Callable]:
    """Return all recipes by name."""
    _load()
    return dict(sorted(_recipes.items()))


def fiddlers() -> dict[str, Callable]:
    """Return all fiddlers by name."""
    _load()
    return dict(sorted(_fiddlers.items()))


def components() -> dict[str, Callable]:
    """Return all component factories by name."""
    _load()
    return dict(sorted(_components.items()))


@functools.cache  # reading entry points scans every installed distribution
def extension_packages() -> frozenset[str]:
    """Top-level packages that recipes come from: this project's, and those of entry points."""
    entries = importlib.metadata.entry_points(group=_ENTRY_POINTS)
    return frozenset({"nanigpt", *(e.module.partition(".")[0] for e in entries)})


def imports() -> tuple[str, ...]:
    """Return the names of modules that a user imported for their recipes and classes."""
    return ()


def family(function: Callable) -> str:
    """Return the model family of a recipe: `FAMILY` of its module, or the module's name."""
    name = function.__module__
    return getattr(sys.modules[name], "FAMILY", name.rpartition(".")[2])


def find_recipe(name: str) -> Callable:
    """Return the recipe with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
    """
    return _find(recipes(), "recipe", name)


def find_fiddler(name: str) -> Callable:
    """Return the fiddler with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
    """
    return _find(fiddlers(), "fiddler", name)


def find_component(name: str) -> Callable:
    """Return the component factory with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
    """
    return _find(components(), "component", name)


def _register(table: dict[str, Callable], kind: str, function: Callable) -> Callable:
    name = function.__name__
    other = table.setdefault(name, function)
    if other is not function and other.__module__ != function.__module__:
        raise ValueError(
            f"two {kind}s are named {name!r}: in {other.__module__} and in {function.__module__}"
        )
    table[name] = function
    return function


def _find(table: dict[str, Callable], kind: str, name: str) -> Callable:
    if name not in table:
        raise UnknownName(f"unknown {kind} {name!r}", name, table)
    return table[name]


def _load() -> None:
    global _loaded
    if _loaded:
        return
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{name}."):
            importlib.import_module(module.name)
    for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        entry.load()
    _loaded = True

"""Recipes, sources, fiddlers and component factories by name.

`@recipe`, `@source`, `@fiddler` and `@component` register the functions of the packages
`nanigpt.experiments` and `nanigpt.fiddlers`, of every module that another installed distribution
names under the entry point group `nanigpt`, and of modules that `--import` names (`imports.py`). A
name from the command line is looked up here and nowhere else: no other flag imports anything by a
name.

A module of recipes tells the family of its models by a constant: `FAMILY = "Llama 3"`.
"""

import functools
import gc
import importlib
import importlib.metadata
import inspect
import itertools
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from nanigpt.config.factory import factory_of, has_factory
from nanigpt.config.nearby import definition
from nanigpt.errors import MissingImport, UnknownName, UsageError

_PACKAGES = ("nanigpt.experiments", "nanigpt.fiddlers")
_ENTRY_POINTS = "nanigpt"

# The code of all registered functions by its id, for a history of values to know their lines. Code
# objects hash slowly.
entrances: dict[int, types.CodeType] = {}

_Table = dict[str, Callable[..., Any]]
_F = TypeVar("_F", bound=Callable[..., Any])

_recipes: _Table = {}
_sources: dict[str, Callable[[str], Any]] = {}
_fiddlers: _Table = {}
_components: _Table = {}
_upgrades: list[Callable[[Any], None]] = []
_moved: dict[str, str] = {}
_imports: dict[
    str, list[Callable[..., Any]]
] = {}  # factories of the public classes, by what was imported
_flags: dict[str, None] = {}  # the texts that flags gave, in order
_loaded = False


def recipe(function: _F) -> _F:
    """Register a function that returns a run's config: `--config=config:NAME`."""
    return _register(_recipes, "recipe", function)


def source(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Register a function that returns the config of a path: `--config=NAME:PATH`."""
    return _register(_sources, "source", function)


def fiddler(function: _F) -> _F:
    """Register a function that edits a run's config in place: `--config=fiddler:NAME(...)`."""
    return _register(_fiddlers, "fiddler", function)


def component(part: _F) -> _F:
    """Register a class, or a function that returns a component's config: `set:PATH=@NAME(...)`.

    The arguments of a class's `@NAME(...)` are those of its constructor.
    """
    _register(_components, "component", factory_of(part) if isinstance(part, type) else part)
    return part


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
    load()
    return list(_upgrades)


def place_today(module: str, name: str) -> tuple[str, str]:
    """Return module and name of what was `module.name` in an earlier version."""
    load()
    if f"{module}.{name}" in _moved:
        module, _, name = _moved[f"{module}.{name}"].rpartition(".")
    return _moved.get(module, module), name


def recipes() -> _Table:
    """Return all recipes by name."""
    load()
    return dict(sorted(_recipes.items()))


def sources() -> dict[str, Callable[[str], Any]]:
    """Return all sources by name."""
    load()
    return dict(sorted(_sources.items()))


def fiddlers() -> _Table:
    """Return all fiddlers by name."""
    load()
    return dict(sorted(_fiddlers.items()))


def components() -> _Table:
    """Return all component factories by name, and those of public classes of imports.

    A name that several have is left out.
    """
    load()
    found = {name: parts[0] for name, parts in _parts().items() if not parts[1:]}
    return dict(sorted(found.items()))


def add_import(text: str, modules: list[ModuleType], *, flag: bool) -> None:
    """Remember modules that `--import=TEXT`, or a project's file, has imported."""
    _imports[text] = [
        factory_of(value)
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
        and has_factory(value)
    ]
    if flag:
        _flags[text] = None


def imports() -> tuple[str, ...]:
    """Return everything that was imported by `--import` or a project's file, in order."""
    return tuple(_imports)


def import_flags() -> list[str]:
    """Return the flags `--import` that another command, in this directory, needs for the same."""
    return [f"--import={text}" for text in _flags]


def missing_import(module: str, recorded: Iterable[str]) -> str | None:
    """Return the import that has a module and is not there, or None.

    Args:
        module: Name of the module.
        recorded: `imports()` of another process.
    """
    here = set(map(_module_name, _imports))
    for text in recorded:
        name = _module_name(text)
        if name not in here and f"{module}.".startswith(f"{name}."):
            return text
    return None


def extension_packages() -> frozenset[str]:
    """Return the top-level packages that recipes come from.

    They are this project's, and those of entry points and imports.
    """
    return _installed_packages() | {_module_name(text).partition(".")[0] for text in _imports}


@functools.cache  # reading entry points scans every installed distribution
def _installed_packages() -> frozenset[str]:
    entries = importlib.metadata.entry_points(group=_ENTRY_POINTS)
    return frozenset({"nanigpt", *(e.module.partition(".")[0] for e in entries)})


def family(function: Callable[..., Any]) -> str:
    """Return the model family of a recipe: `FAMILY` of its module, or the module's name."""
    name = function.__module__
    return getattr(sys.modules[name], "FAMILY", name.rpartition(".")[2])


def find_recipe(name: str) -> Callable[..., Any]:
    """Return the recipe with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
        MissingImport: there is none, but a file of the working directory defines it.
    """
    return _find(recipes(), "recipe", name)


def find_fiddler(name: str) -> Callable[..., Any]:
    """Return the fiddler with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
        MissingImport: there is none, but a file of the working directory defines it.
    """
    return _find(fiddlers(), "fiddler", name)


def find_component(name: str) -> Callable[..., Any]:
    """Return the component factory with this name.

    Raises:
        UnknownName: there is none; the message names the nearest.
        MissingImport: there is none, but a file of the working directory defines it.
        UsageError: several have it.
    """
    found = components()
    places = [part.__module__ for part in _parts().get(name, [])]
    if places[1:]:
        raise UsageError(
            f"{len(places)} components are named {name!r}: in {' and in '.join(places)}; "
            "rename one of them"
        )
    return _find(found, "component", name)


def _register(table: _Table, kind: str, function: _F) -> _F:
    name = function.__name__
    other = table.setdefault(name, function)
    if other is not function and other.__module__ != function.__module__:
        raise UsageError(
            f"two {kind}s are named {name!r}: in {other.__module__} and in {function.__module__}; "
            "rename one of them"
        )
    table[name] = function
    if isinstance(plain := inspect.unwrap(function), types.FunctionType):
        entrances[id(plain.__code__)] = plain.__code__
    return function


def _find(table: _Table, kind: str, name: str) -> Callable[..., Any]:
    if name in table:
        return table[name]
    imported = {_module_name(text) for text in _imports}
    if found := definition(kind, name, imported):
        module, file = found
        problem = f"unknown {kind} {name!r}"
        if module not in imported:
            raise MissingImport(f"{problem}; {file} defines one", module=module)
        raise UsageError(f"{problem}; decorate the one in {file} with @{kind}")
    raise UnknownName(f"unknown {kind} {name!r}", name, table)


def _parts() -> dict[str, list[Callable[..., Any]]]:
    """Return the factories of components by name, more than one where names clash."""
    parts = {name: [function] for name, function in _components.items()}
    made = {inspect.unwrap(function) for function in _components.values()}
    for factory in itertools.chain(*_imports.values()):
        wrapped = inspect.unwrap(factory)
        if wrapped not in made:  # not decorated, and no other import has it
            made.add(wrapped)
            parts.setdefault(factory.__name__, []).append(factory)
    return parts


def _module_name(text: str) -> str:
    """Return the name of the module that `--import=TEXT` imports."""
    return Path(text).stem if text.endswith(".py") else text


def load() -> None:
    """Import every package that has names for the command line, but for what a flag imports."""
    global _loaded
    if _loaded:
        return
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{name}."):
            importlib.import_module(module.name)
    for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        entry.load()
    # What was imported lives as long as the process. Collections need not look at it again.
    gc.freeze()
    _loaded = True

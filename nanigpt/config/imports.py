"""Modules of a user's own: `--import=MODULE|FILE.py`, and `[tool.nanigpt]` of pyproject.toml.

Importing a package imports its modules, too, but not the packages inside of it. Nothing else that
nanigpt reads ever causes an import: a record only names the imports of its day.
"""

import contextlib
import importlib
import importlib.util
import keyword
import os
import pkgutil
import sys
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from nanigpt.config import registry
from nanigpt.config.nearby import modules_here
from nanigpt.errors import UnknownName, UsageError, close_names

_PROJECT = Path("pyproject.toml")


def import_all(given: Iterable[str] = ()) -> None:
    """Import everything that the project in the working directory names, and then `given`.

    Args:
        given: Values of `--import`.

    Raises:
        UsageError: One of them cannot be imported.
    """
    for text in project_imports():
        import_code(text, where=f"{_PROJECT}, import {text!r}", flag=False)
    for text in given:
        import_code(text)


def project_imports() -> list[str]:
    """Return `import` of `[tool.nanigpt]` in the working directory's pyproject.toml.

    Folders above are not searched. So a relative name means the same here and there.

    Raises:
        UsageError: The file is not TOML, or has something else there.
    """
    if not _PROJECT.is_file():
        return []
    try:
        tools = tomllib.loads(_PROJECT.read_text()).get("tool", {})
    except (OSError, ValueError) as error:
        raise UsageError(f"{_PROJECT}: {error}") from error
    settings = tools.get("nanigpt", {}) if isinstance(tools, dict) else {}
    if not isinstance(settings, dict):
        raise UsageError(f"{_PROJECT}: tool.nanigpt={settings!r}: expected a table [tool.nanigpt]")
    for key in settings:
        if key != "import":
            raise UnknownName(f"{_PROJECT}, [tool.nanigpt]: unknown key {key!r}", key, ["import"])
    found = settings.get("import", [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(
            f'{_PROJECT}, [tool.nanigpt]: import={found!r}: expected a list such as ["experiments"]'
        )
    return found


def import_code(text: str, *, where: str | None = None, flag: bool = True) -> None:
    """Import a module, a package with its modules, or a file; their decorators register names.

    Args:
        text: Name of the module, or path of the file, whose name ends with `.py`.
        where: Beginning of error messages; None stands for the flag.
        flag: Whether commands that a message prints, and child processes, need the flag.

    Raises:
        UsageError: It cannot be imported, or its name is another module's.
    """
    registry.load()  # a name that nanigpt has already is then refused where it is used again
    try:
        name, wanted = _file(text) if text.endswith(".py") else _module(text)
        modules = _import(name, wanted)
    except UsageError as error:
        near = error.near[0] if flag and isinstance(error, UnknownName) and error.near else None
        advice = f"\n  try: --import={near}" if near else ""
        raise UsageError(f"{where or f'--import={text}'}: {error}{advice}") from error
    registry.add_import(text, modules, flag=flag)


def _file(text: str) -> tuple[str, Path]:
    """Return the module's name, and the file, whose folder is then searched for modules."""
    file = Path(text).expanduser().absolute()  # a link has a name of its own
    if not file.is_file():
        stems = [path.stem for path in file.parent.glob("*.py")]
        near = [str(Path(text).with_name(f"{stem}.py")) for stem in close_names(file.stem, stems)]
        raise _unknown("no such file", text, near)
    name = file.stem
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a module; rename the file")
    _search(file.parent)
    with _search_without(file.parent.resolve()):
        other = _place(name)
    if other is not None and other != file.resolve():
        raise _clash(name, other, "rename the file")
    return name, file.resolve()


def _module(text: str) -> tuple[str, Path | None]:
    """Return the name, and the file or folder of it in the working directory, if there is one."""
    if not text or not all(part.isidentifier() for part in text.split(".")):
        meant = os.path.relpath(text or ".").removesuffix("/.").replace("/", ".")
        right = [meant] if all(part.isidentifier() for part in meant.split(".")) else []
        example = f", such as {meant}" if right else ""
        raise UnknownName(f"expected MODULE or FILE.py{example}", text, near=right)
    here, top = Path.cwd(), text.partition(".")[0]
    _search(here)
    for path in (here / top / "__init__.py", here / f"{top}.py"):
        if path.is_file():
            return text, path.resolve()
    # A folder that has no code may be that of a program's output.
    return text, (here / top).resolve() if any((here / top).glob("*.py")) else None


def _import(name: str, wanted: Path | None) -> list[ModuleType]:
    """Import a module, and the modules of a package.

    Args:
        name: Name of the module.
        wanted: The file, or the folder without `__init__.py`, where Python must find its top.
    """
    top = name.partition(".")[0]
    importlib.invalidate_caches()
    found = _place(top)
    if wanted is not None and found is not None and found != wanted:
        advice = "rename the file" if wanted.is_file() else f"add {wanted.name}/__init__.py"
        raise _clash(top, found, advice)
    try:
        modules = [importlib.import_module(name)]
        for inner in pkgutil.iter_modules(getattr(modules[0], "__path__", ()), f"{name}."):
            if not inner.name.endswith(".__main__"):  # which runs a program
                modules.append(importlib.import_module(inner.name))
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            problem = "no module of this name is installed, or in this directory"
            raise _unknown(problem, name, close_names(name, modules_here())) from error
        raise UsageError(_told(error, found)) from error
    return modules


def _place(name: str) -> Path | None:
    """Return where a module is loaded from, or would be: a file, or a folder without one."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec is loaded, such as __main__
        return Path(getattr(sys.modules[name], "__file__", None) or name)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve()
    folders = [Path(path).resolve() for path in spec.submodule_search_locations or ()]
    return folders[0] if folders else None


def _clash(name: str, other: Path, advice: str) -> UsageError:
    standard = name in sys.stdlib_module_names
    place = "Python's standard library" if standard else _shown(other)
    return UsageError(f"a module {name!r} is in {place} already; {advice}")


def _unknown(problem: str, name: str, near: list[str]) -> UnknownName:
    """Return an error that names a similar name, but not all that are known."""
    told = f"{problem}; did you mean {near[0]!r}?" if near else problem
    return UnknownName(told, name, near=near)


def _told(error: BaseException, place: Path | None) -> str:
    """Return an exception in one line that begins with the file and the line of the user's code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename))}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = list(traceback.extract_tb(error.__traceback__))
    if place is not None:
        root = place.parent if place.name == "__init__.py" else place
        frames = [f for f in frames if Path(f.filename).is_relative_to(root)] or frames
    kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
    return f"{_shown(Path(frames[-1].filename))}:{frames[-1].lineno}: {kind}{error}"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _search(folder: Path) -> None:
    """Let Python find modules in a folder, in this process and in those that it spawns."""
    if folder.resolve() not in (Path(path).resolve() for path in sys.path):
        sys.path.insert(0, str(folder))


@contextlib.contextmanager
def _search_without(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:] = [path for path in before if Path(path).resolve() != folder]
    try:
        yield
    finally:
        sys.path[:] = before

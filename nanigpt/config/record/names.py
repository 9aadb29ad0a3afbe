"""Names of classes, functions and constants outside of this process.

This includes the list of names that a config file may have.
"""

import functools
import importlib
import inspect
import pathlib
import re
import sys
import types
from enum import Enum
from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import components, extension_packages, imports, place_today
from nanigpt.errors import UsageError
from nanigpt.pure import is_pure

_BUILTINS = (bool, bytes, complex, dict, float, frozenset, int, list, set, slice, str, tuple)
# Packages and modules of nanigpt whose classes a record may name. Converters of weights are no
# components: their constructors open files.
_OURS = re.compile(
    r"nanigpt\.(tags|(data|experiments|models|optim|parallel|precision|tasks|training)(\.\w+)+)"
)
_CONVERTERS = re.compile(r"nanigpt\.models\.huggingface\b")


@functools.cache
def _library() -> dict[tuple[str, str], Any]:
    """Return everything in libraries that a config file may name, by public names.

    These are containers, Fiddle's marks, and those parts of torch that compute on tensors but reach
    no file.
    """
    named: dict[tuple[str, str], Any] = {("builtins", kind.__name__): kind for kind in _BUILTINS}
    tagged = fdl.TaggedValue(tags=(fdl.Tag,))
    named["fiddle", "TaggedValue"] = fdl.get_callable(tagged)
    named["fiddle", "NO_VALUE"] = fdl.NO_VALUE
    named["functools", "partial"] = functools.partial
    named["pathlib", "Path"] = pathlib.Path
    named["torch", "device"] = torch.device
    constants = (torch.dtype, torch.layout, torch.memory_format)
    for name, value in vars(torch).items():
        # `torch.load`, `save` and `from_file` are no methods of a tensor.
        computes = isinstance(value, types.BuiltinFunctionType) and hasattr(torch.Tensor, name)
        is_constant = isinstance(value, constants) and str(value) == f"torch.{name}"
        if is_constant or (computes and not name.startswith("_")):
            named["torch", name] = value
    schedulers = torch.optim.lr_scheduler
    bases: dict[types.ModuleType, type] = {
        torch.nn: torch.nn.Module,
        torch.optim: torch.optim.Optimizer,
        schedulers: schedulers.LRScheduler,
    }
    for package, base in bases.items():
        for name, value in vars(package).items():
            if isinstance(value, type) and issubclass(value, base):
                named[package.__name__, name] = value
    for package in (torch.nn.functional, torch.nn.init):
        for name, value in vars(package).items():
            ours = isinstance(value, types.FunctionType) and value.__module__ == package.__name__
            if (ours or _is_kernel(value)) and not name.startswith("_"):
                named[package.__name__, name] = value
    return named


def _is_kernel(value: Any) -> bool:
    return isinstance(value, types.BuiltinFunctionType) and value.__module__ in (
        "torch",
        "torch._C._nn",
    )


@functools.cache
def _names() -> dict[int, tuple[str, str]]:
    names: dict[int, tuple[str, str]] = {}
    for name, value in _library().items():
        names.setdefault(id(value), name)
    names[id(type(pathlib.Path()))] = ("pathlib", "Path")  # of this platform
    return names


def library_name(value: Any) -> tuple[str, str] | None:
    """Return the module and public name of a library's object that a config file may name.

    For example `torch.nn.Linear`. The name is the same for all versions of a library. Return None
    for any other object.
    """
    return _names().get(id(value))


def own_name(value: Any) -> tuple[str, str] | None:
    """Return module and qualified name of a class, function, class method or member of an enum.

    Return None for an object without a name, such as an instance or a bound method.
    """
    if known := library_name(value):
        return known
    if isinstance(value, Enum):
        return type(value).__module__, f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        owner = value.__self__
        if isinstance(owner, type):  # a subclass may inherit it
            return owner.__module__, f"{owner.__qualname__}.{value.__name__}"
        if owner is not None and not inspect.ismodule(owner):
            return None
    name = getattr(value, "__qualname__", None)
    return (getattr(value, "__module__", None) or "", name) if isinstance(name, str) else None


def full_name(value: Any) -> str:
    """Return `module:name` of a class, function or member of an enum.

    Raises:
        UsageError: Another process cannot find it by a name.
    """
    module, name = own_name(value) or ("", "")
    if name.endswith("<lambda>"):
        code = value.__code__
        raise UsageError(
            f"a lambda ({pathlib.Path(code.co_filename).name}:{code.co_firstlineno}) has no name "
            "to record it by; name the function: def it at the top level of a module, and add "
            "--import=FILE.py"
        )
    if "<" in name or not name:  # <locals>
        raise UsageError(
            f"{value!r} cannot be named from another process; define it at the top level of a "
            "module, and add --import=FILE.py"
        )
    return f"{module}:{name}"


def recorded_name(value: Any) -> str:
    """Return `module:name` of an object that a config file may name.

    Raises:
        UsageError: It may not, or another object has the name. The message has the remedy.
    """
    text = full_name(value)
    module, _, symbol = text.partition(":")
    if library_name(value):
        return text
    if problem := _misplaced(module, symbol):
        raise UsageError(f"{text} {problem}")
    if not _is_harmless(value):
        raise UsageError(
            f"{text} is a function that a config file may not name; use a class, or mark the "
            "function with @nanigpt.pure.pure if it reads and writes no file"
        )
    found = _look_up(module, symbol)
    # A class method is another object each time.
    if found is not value and not (isinstance(value, types.MethodType) and found == value):
        raise UsageError(f"{text} is the name of another object: {found!r}")
    return text


def find(text: str) -> Any:
    """Return the object that a config file names as `module:name`.

    Only modules of nanigpt are imported, and only those that hold components.

    Raises:
        UsageError: A config file may not name it, or there is no such object.
    """
    module, _, symbol = text.partition(":")
    module, symbol = place_today(module, symbol)
    if (module, symbol) in _library():
        return _library()[module, symbol]
    refused = f"names {text}, which a config file may not"
    if problem := _misplaced(module, symbol):
        raise UsageError(f"{refused}: it {problem}")
    value = _look_up(module, symbol)
    # A module may have imported `os`, and a class leads to others: what was found must be allowed
    # by the name that it has where it is defined.
    place = own_name(value)
    if value is None or place is None or (not library_name(value) and _misplaced(*place)):
        raise UsageError(f"{refused}: {module} defines no such class or function")
    if not library_name(value) and not _is_harmless(value):
        raise UsageError(
            f"{refused}: it is a function without the mark @nanigpt.pure.pure, and may do anything"
        )
    return value


def _misplaced(module: str, symbol: str) -> str:
    """Say why a config file may name nothing at this place; "" if it may."""
    # What is private may do anything: `__main__` runs a command, `_remove` deletes a folder.
    if module == "__main__":
        return "is defined in a script; define it in a module, and add --import=FILE.py"
    if "__main__" in module or not all(
        part.isidentifier() and not part.startswith("_") for part in symbol.split(".")
    ):
        return "is private"
    package = module.partition(".")[0]
    if package == "nanigpt":
        if _OURS.fullmatch(module) and not _CONVERTERS.match(module):
            return ""
        return "is no component"
    known = {*extension_packages(), *(name.partition(".")[0] for name in imports())}
    if package not in known:
        return (
            f"is in none of the packages {', '.join(sorted(known))}; if it is your own, add "
            "--import=FILE.py or --import=MODULE"
        )
    if module not in sys.modules:
        return f"is in a module that is not imported; add --import={module} if you trust it"
    return ""


def _is_harmless(value: Any) -> bool:
    """Return whether a value is a class, a member of an enum, or a function that may be named."""
    if isinstance(value, (type, Enum)):
        return True
    function = getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType):
        return False
    return is_pure(function) or any(function is known for known in components().values())


def _look_up(module: str, symbol: str) -> Any:
    """Return what a module that was not `_misplaced` defines, or None; no code of it is called."""
    if module not in sys.modules:
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    value: Any = sys.modules[module]
    for part in symbol.split("."):
        if isinstance(value, type) and issubclass(value, Enum):
            value = value.__members__.get(part)
            continue
        if not isinstance(value, (type, types.ModuleType)):
            return None
        found = inspect.getattr_static(value, part, None)
        if isinstance(value, type) and isinstance(found, (classmethod, staticmethod)):
            found = found.__get__(None, value)
        value = found
    return value

"""Names of classes, functions and constants outside of this process.

This includes the list of names that a config file may have.
"""

import functools
import inspect
import pathlib
import types
from enum import Enum
from typing import Any

import fiddle as fdl
import torch
from fiddle._src import config as fiddle_config  # the public module hides the metadata
from fiddle._src import tagging
from fiddle._src.experimental import serialization

from nanigpt.config.registry import extension_packages

_BUILTINS = (bool, bytes, complex, dict, float, frozenset, int, list, set, slice, str, tuple)
_FIDDLE = (
    fdl.ArgFactory,
    fdl.Config,
    fdl.Partial,
    fiddle_config.BuildableTraverserMetadata,
    fiddle_config.NoValue,
    tagging.TaggedValueCls,
    tagging.tagged_value_fn,
)
# Of nanigpt: packages that hold no components, and those whose functions are components; functions
# of others reach files and processes, and their components are classes.
_TOOLS = ("cli", "config")
_PURE = ("models", "optim")


@functools.cache
def _library() -> dict[tuple[str, str], Any]:
    """Return everything in libraries that a config file may name, by public names.

    These are containers, Fiddle's nodes, and those parts of torch that compute on tensors but reach
    no file.
    """
    named: dict[tuple[str, str], Any] = {("builtins", kind.__name__): kind for kind in _BUILTINS}
    named |= {(each.__module__, each.__qualname__): each for each in _FIDDLE}
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


class AllowList(serialization.PyrefPolicy):
    """The names that a config file may have.

    They are public classes and functions of packages of recipes, by the module that defines them;
    Fiddle's nodes and containers; and torch's modules, optimizers, functions of tensors, and
    constants. Any other name is refused before it is imported.
    """

    def allows_import(self, module: str, symbol: str) -> bool:
        if not (isinstance(module, str) and isinstance(symbol, str)):
            return False
        if (module, symbol) in _library():
            return True
        # What is private may do anything: `__main__` runs a command, `_remove` deletes a folder.
        if "__main__" in module or any(part.startswith("_") for part in symbol.split(".")):
            return False
        package, *rest = module.split(".")
        if package == "nanigpt" and module != "nanigpt.tags":
            return len(rest) > 1 and rest[0] not in _TOOLS
        return package in extension_packages()

    def allows_value(self, value: Any) -> bool:
        # A module of ours may have imported `os`, and a class leads to others: what was found
        # must be allowed by the name that it has where it is defined.
        name = own_name(value)
        if name is None or not self.allows_import(*name):
            return False
        if name in _library() or not isinstance(value, types.FunctionType):
            return True
        package, *rest = name[0].split(".")
        is_method = "." in name[1]
        return not is_method and (package != "nanigpt" or rest[0] in _PURE)

    def __str__(self) -> str:
        return f"classes and functions of {', '.join(sorted(extension_packages()))}"

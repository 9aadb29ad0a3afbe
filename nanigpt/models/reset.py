"""Values that plain modules give their tensors in `reset_parameters()`, torch.nn's convention.

A few modules of torch.nn, such as MultiheadAttention, name it `_reset_parameters`.

A model is built on meta, where values that `__init__` sets are lost. So `reset_parameters()` is run
again on whole tensors on the CPU, once for each tensor with the tensor's own random stream, and the
caller shards the result. The tensor's module runs first, then the modules around it, outermost
last, since those reset the tensors inside them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanigpt.problems import first_line, refuse


class Resets:
    """Finder of the `reset_parameters` methods that set the tensors of a model."""

    def __init__(self, model: nn.Module):
        self._chains: dict[nn.Module, list[nn.Module]] = {}
        self._written: dict[nn.Module, set[tuple[int, str]]] = {}
        self._walk(model, [])

    def _walk(self, module: nn.Module, around: list[nn.Module]) -> None:
        if module in self._chains:
            return
        chain = [module, *around] if _reset(module) is not None else around
        self._chains[module] = chain
        for child in module.children():
            self._walk(child, chain)

    def has(self, module: nn.Module) -> bool:
        """Return whether any `reset_parameters` may set tensors of `module`."""
        return bool(self._chains[module])

    def sets(self, module: nn.Module, name: str) -> bool:
        """Return whether a tensor of `module` gets a value; this needs no memory."""
        if not self.has(module):
            return False
        root = self._chains[module][-1]
        if root not in self._written:
            try:
                self._written[root] = self._find_written(root, "meta")
            except Exception:  # it may ask for values, which do not exist on meta
                self._written[root] = self._find_written_with_numbers(root)
        return (id(module), name) in self._written[root]

    def value(self, module: nn.Module, name: str, seed: int) -> torch.Tensor:
        """Return the whole value of a tensor of `module`, on the CPU."""
        chain = self._chains[module]
        if not chain:
            raise ValueError(f"nothing resets {name!r} of {type(module).__name__}")
        with _whole(chain[-1], "cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for reset in map(_reset, chain):
                if reset is not None:
                    reset()
            return getattr(module, name).detach().clone()

    def _find_written_with_numbers(self, root: nn.Module) -> set[tuple[int, str]]:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                return self._find_written(root, "cpu")
        except Exception as error:  # a method of another package may raise anything
            expected = f"a reset_parameters() that runs, but it raised {first_line(error)}"
            refuse("", ..., expected, component=root)

    def _find_written(self, root: nn.Module, device: str) -> set[tuple[int, str]]:
        """Run every `reset_parameters` below `root` on a device; note the tensors it writes to."""
        modules = [m for m in root.modules() if m in self._chains]
        with _whole(root, device), _Writes() as writes:
            before = {(id(m), n): t for m in modules for n, t in _own(m)}
            for module in reversed(modules):
                if (reset := _reset(module)) is not None:
                    reset()
            after = {(id(m), n): t for m in modules for n, t in _own(m)}
        return {
            key
            for key, tensor in after.items()
            if tensor is not before.get(key) or writes.has(tensor)
        }


class _Writes(TorchDispatchMode):
    """Mode that notes which tensors operators write to."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: set[int] = set()
        self._kept: list[torch.Tensor] = []  # keeps each storage's number unique

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            tensor = given.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(tensor, torch.Tensor):
                self._kept.append(tensor)
                self._storages.add(tensor.untyped_storage()._cdata)
        return result


def _reset(module: nn.Module) -> Callable[[], Any] | None:
    """Return the method that sets a module's tensors, or None."""
    named = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((method for method in named if callable(method)), None)


def _own(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    tensors = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in tensors if tensor is not None]


@contextlib.contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """Put all tensors of a model on meta, and undo at the end what its forward pass has kept.

    A module that keeps a tensor for later, such as a mask, must not keep one without values.
    """
    saved = [(module, dict(vars(module))) for module in model.modules()]
    try:
        with _whole(model, "meta"):
            yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)


@contextlib.contextmanager
def _whole(root: nn.Module, device: str) -> Iterator[None]:
    """Replace all tensors below `root` by whole, uninitialised ones on `device`."""
    modules = list(root.modules())
    saved = [(m, dict(m._parameters), dict(m._buffers)) for m in modules]
    made: dict[torch.Tensor, Any] = {}

    def whole(tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        if tensor not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[tensor]

    try:
        for module, parameters, buffers in saved:
            module._parameters.update({name: whole(t) for name, t in parameters.items()})
            module._buffers.update({name: whole(t) for name, t in buffers.items()})
        yield
    finally:
        for module, parameters, buffers in saved:
            module._parameters.update(parameters)
            module._buffers.update(buffers)

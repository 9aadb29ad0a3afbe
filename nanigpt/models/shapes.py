"""Run one forward pass on meta, to find modules that do not fit in their place.

A module of another package declares no sizes. The module that holds it names, in the class
attribute `shape_preserving`, its children whose output has the shape of their first input:

    class Block(nn.Module):
        shape_preserving = ("norm", "feed_forward")

The name of a ModuleList or ModuleDict covers its elements.
"""

import contextlib
import logging
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nanigpt.models.attributes import OF_EVERY_MODULE
from nanigpt.models.reset import on_meta
from nanigpt.models.widths import size
from nanigpt.problems import Problem, first_line, show

log = logging.getLogger(__name__)


def says_all_widths(model: nn.Module) -> bool:
    """Return whether constructors have compared all widths of a model.

    They compare widths that modules declare. Modules of other packages need `shape_problems`, in
    any place.
    """
    ours = all(
        type(module).__module__.split(".")[0] in ("nanigpt", "torch") for module in model.modules()
    )
    return ours and all(
        hasattr(module, "stream_dims") or size(module, "dim") is not None
        for module in _shape_preserving(model)
    )


def shape_problems(model: nn.Module, *inputs: Any, **options: Any) -> list[Problem]:
    """Run a model once on meta, and report each module that fails or returns another shape.

    If a module fails and its parent declares that it preserves the shape, the pass skips it, so
    that one pass finds all such modules. Equal modules that get equal shapes, such as layers, run
    once, and all of them get the problems of that run. Values that a module computes from the
    values of tensors, such as the number of tokens of an expert, do not exist on meta; the pass
    skips such a module, and a warning names it.

    Args:
        inputs: Arguments of the forward pass, tensors on meta.
        options: Keyword arguments of the forward pass.
    """
    run = _Run(model)
    with run.watching(), on_meta(model), torch.no_grad():
        try:
            model(*inputs, **options)
        except Exception as error:  # a forward pass of another package may raise anything
            run.add(error, model, inputs, options)
    run.warn()
    return run.problems


def needs_values(error: Exception) -> bool:
    """Return whether an error of torch says that it does not compute with tensors on meta."""
    return re.search(r"\bmeta\b", str(error), re.IGNORECASE) is not None


class _Run:
    """State of a run: modules whose forward pass is in progress, and problems so far."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.problems: list[Problem] = []
        # Modules that do not run on meta, and why.
        self._passed_over: list[tuple[nn.Module, str]] = []
        self._open: list[nn.Module] = []
        # Modules that ran, their outputs, and what was found, by class and shapes.
        self._done: dict[Any, tuple[nn.Module, Any, list[Problem], list[tuple]]] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every module of the model, and guard those that preserve the shape."""
        with contextlib.ExitStack() as until_the_end:
            for module in self._model.modules():
                entered = module.register_forward_pre_hook(self._enter)
                left = module.register_forward_hook(self._leave)
                until_the_end.callback(entered.remove)
                until_the_end.callback(left.remove)
            children = [(child, _kind(child)) for child in _shape_preserving(self._model)]
            for child, kind in children:
                until_the_end.enter_context(self._guarded(child, kind))
            yield

    def add(self, error: Exception, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Report an error of the innermost module whose forward pass is in progress."""
        inner = self._open[-1] if self._open else module
        if needs_values(error):
            rest = ", nor are the modules after it" if module is self._model else ""
            self._passed_over.append((inner, f"{first_line(error)}){rest}"))
            return
        where = "" if inner is module else f" in {type(module).__name__}"
        expected = f"a forward pass of {_call(args, kwargs)}{where}, but it raised "
        expected += first_line(error)
        self.problems.append(Problem("", ..., expected, component=inner))

    def warn(self) -> None:
        """Warn of modules that do not run on meta. Equal warnings are one."""
        names = {module: name or "the model" for name, module in self._model.named_modules()}
        places: dict[tuple[type, str], dict[str, None]] = {}
        for module, told in self._passed_over:
            places.setdefault((type(module), told), {})[names[module]] = None
        for (kind, told), (first, *others) in places.items():
            where = f"{first} and {len(others)} more" if others else first
            log.warning(
                "%s (%s) is not checked: it does not run on meta tensors, which have no values (%s",
                kind.__name__,
                where,
                told,
            )

    def _checked(
        self, module: nn.Module, forward: Callable, given: torch.Tensor, args: tuple, kwargs: dict
    ) -> Any:
        """Return the output of a module that preserves the shape, or a tensor of that shape."""
        depth = len(self._open)
        try:
            output = forward(*args, **kwargs)
        except Exception as error:  # a forward pass of another package may raise anything
            self.add(error, module, args, kwargs)
            del self._open[depth:]
            return torch.empty_like(given)
        result = output[0] if isinstance(output, tuple) and output else output
        if isinstance(result, torch.Tensor) and result.shape == given.shape:
            return output
        told = form(result) if isinstance(result, torch.Tensor) else type(result).__name__
        expected = f"an output of its input's shape {form(given)}, not {told}"
        self.problems.append(Problem("", ..., expected, component=module))
        return torch.empty_like(given)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._open.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._open.pop()

    @contextlib.contextmanager
    def _guarded(self, module: nn.Module, kind: Any) -> Iterator[None]:
        own = vars(module).get("forward")
        forward = module.forward

        def guarded(*args: Any, **kwargs: Any) -> Any:
            given = _first(args, kwargs)
            if given is None:
                return forward(*args, **kwargs)
            named = {k: _described(v) for k, v in kwargs.items()}
            key = (kind, [_described(a) for a in args], named)
            known = repr(key)
            if known in self._done:
                other, output, problems, passed_over = self._done[known]
                names = {id(part): name for name, part in other.named_modules()}
                same = {i: module.get_submodule(name) for i, name in names.items()}
                self.problems += [replace(p, component=same[id(p.component)]) for p in problems]
                self._passed_over += [(same[id(part)], told) for part, told in passed_over]
                return output
            before = len(self.problems), len(self._passed_over)
            output = self._checked(module, forward, given, args, kwargs)
            found = self.problems[before[0] :], self._passed_over[before[1] :]
            self._done[known] = (module, output, *found)
            return output

        module.forward = guarded
        try:
            yield
        finally:
            if own is None:
                del module.forward
            else:
                module.forward = own


def _kind(module: nn.Module) -> Any:
    """Describe a module so that equal descriptions stand for equal forward passes."""
    parts = []
    for name, part in module.named_modules():
        held = {k: _described(v) for k, v in vars(part).items() if k not in OF_EVERY_MODULE}
        for tensors in (part._parameters, part._buffers):
            held |= {k: _described(v) for k, v in tensors.items()}
        parts.append((name, id(type(part)), held))
    return parts


def _described(value: Any, depth: int = 0) -> Any:
    """Describe a value by its content; a value without content equals only itself."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        return id(value.__code__), [_described(cell.cell_contents, depth + 1) for cell in cells]
    if " object at 0x" in repr(value) and hasattr(value, "__dict__") and depth < 3:
        held = {k: _described(v, depth + 1) for k, v in vars(value).items()}
        return id(type(value)), held
    return value


def _shape_preserving(model: nn.Module) -> list[nn.Module]:
    """Return the modules that their parents name, each once."""
    found: dict[int, nn.Module] = {}
    for parent in model.modules():
        for name in getattr(type(parent), "shape_preserving", ()):
            child = getattr(parent, name, None)
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                found |= {id(element): element for element in child.children()}
            elif isinstance(child, nn.Module):
                found[id(child)] = child
    return list(found.values())


def _first(args: tuple, kwargs: dict) -> torch.Tensor | None:
    given = (*args, *kwargs.values())
    return next((value for value in given if isinstance(value, torch.Tensor)), None)


def _call(args: tuple, kwargs: dict) -> str:
    """Write the arguments of a call; the shapes of tensors stand for them."""
    told = [_argument(value) for value in args]
    told += [f"{name}={_argument(value)}" for name, value in kwargs.items()]
    return told[0] if len(told) == 1 else f"({', '.join(told)})"


def _argument(value: Any) -> str:
    return form(value) if isinstance(value, torch.Tensor) else show(value)


def form(tensor: torch.Tensor) -> str:
    """Write the shape of a tensor, for a message."""
    return f"[{', '.join(map(str, tensor.shape))}]"

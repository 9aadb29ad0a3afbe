"""One forward pass on meta, which finds modules that do not fit where they stand.

A module of another package declares no sizes. The module that holds it names, in the class
attribute `shape_preserving`, its children whose output has the shape of their first input:

    class Block(nn.Module):
        shape_preserving = ("norm", "feed_forward")

An element of a ModuleList or ModuleDict is meant by the name of the list or dict.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nanigpt.problems import Problem


def shape_problems(model: nn.Module, *inputs: Any, **options: Any) -> list[Problem]:
    """Run a model once on meta, and report each module that fails or returns another shape.

    A module that fails is passed over where its parent says that it preserves the shape, so that
    one pass finds all of them. What a module computes from the values of tensors, such as the
    number of tokens of an expert, does not exist on meta; such a module is passed over in silence.

    Args:
        inputs: arguments of the forward pass, tensors on meta.
        options: keyword arguments of the forward pass.
    """
    run = _Run()
    tensors = {
        name: tensor.to("meta")
        for named in (model.named_parameters, model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }
    with run.watching(model), torch.no_grad():
        try:
            torch.func.functional_call(model, tensors, inputs, options, strict=True)
        except Exception as error:  # a forward pass of another package may raise anything
            run.add(error, model, inputs, options)
    return run.problems


class _Run:
    """The modules whose forward pass is going on, and what was wrong so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._open: list[nn.Module] = []

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow every module of a model, and guard those that preserve the shape."""
        with contextlib.ExitStack() as until_the_end:
            for module in model.modules():
                entered = module.register_forward_pre_hook(self._enter)
                left = module.register_forward_hook(self._leave)
                until_the_end.callback(entered.remove)
                until_the_end.callback(left.remove)
            for child in _shape_preserving(model):
                until_the_end.enter_context(self._guarded(child))
            yield

    def add(self, error: Exception, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Report an error of the innermost module whose forward pass is going on."""
        inner = self._open[-1] if self._open else module
        if _needs_values(error):
            return
        given = _first(args, kwargs)
        takes = f" of {_form(given)}" if given is not None else ""
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        where = "" if inner is module else f" of {type(module).__name__}"
        expected = f"to work in a forward pass{where}{takes}, but it raised {told}"
        self.problems.append(Problem("", ..., expected, component=inner))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._open.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._open.pop()

    @contextlib.contextmanager
    def _guarded(self, module: nn.Module) -> Iterator[None]:
        own = vars(module).get("forward")
        forward = module.forward

        def guarded(*args: Any, **kwargs: Any) -> Any:
            given, depth = _first(args, kwargs), len(self._open)
            try:
                output = forward(*args, **kwargs)
            except Exception as error:
                if given is None:
                    raise
                self.add(error, module, args, kwargs)
                del self._open[depth:]
                return torch.empty_like(given)
            if given is None:
                return output
            result = output[0] if isinstance(output, tuple) and output else output
            if isinstance(result, torch.Tensor) and result.shape == given.shape:
                return output
            told = _form(result) if isinstance(result, torch.Tensor) else type(result).__name__
            expected = f"an output of its input's shape {_form(given)}, not {told}"
            self.problems.append(Problem("", ..., expected, component=module))
            return torch.empty_like(given)

        module.forward = guarded
        try:
            yield
        finally:
            if own is None:
                del module.forward
            else:
                module.forward = own


def _shape_preserving(model: nn.Module) -> list[nn.Module]:
    """The modules that their parents name, each once."""
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


def _form(tensor: torch.Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _needs_values(error: Exception) -> bool:
    """Whether an error says that a tensor on meta has no values."""
    return isinstance(error, NotImplementedError) or (
        isinstance(error, RuntimeError) and "meta tensor" in str(error).lower()
    )

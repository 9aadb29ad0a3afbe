"""Whether a class, or an object, has what a protocol asks for.

Methods are compared by how they can be called: a positional-only parameter of the protocol matches
a parameter of any name. typeguard, which checks other types, compares names.
"""

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import typing_extensions

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BUILTIN = (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodWrapperType)


def is_protocol(annotation: Any) -> bool:
    """Return whether an annotation is a protocol, also one with type arguments."""
    return typing_extensions.is_protocol(typing.get_origin(annotation) or annotation)


def is_callable(annotation: Any) -> bool:
    """Return whether an annotation is `Callable` or `Callable[[A], B]`."""
    return (typing.get_origin(annotation) or annotation) is collections.abc.Callable


def class_lacks(made: type, annotation: Any) -> str | None:
    """Say what objects of a class lack for a protocol or `Callable`; None where nothing is missing.

    Attributes are left out, since a constructor may set them: `object_lacks` checks them.
    """
    if is_callable(annotation):
        if "__call__" not in dir(made):
            return f"{made.__name__} cannot be called"
        called = getattr(made, "forward" if _is_module(made) else "__call__")
        return _returns_other(called, annotation) or _differs(
            _method(made, "__call__"), _asked_by_callable(annotation), "__call__"
        )
    for name, asked in _methods(annotation):
        if name not in dir(made):  # hasattr would look at the metaclass too
            return f"{made.__name__} has no method {name!r}"
        if problem := _differs(_method(made, name), asked, name):
            return problem
    return None


def object_lacks(value: Any, annotation: Any) -> str | None:
    """Say what an object lacks for a protocol or `Callable`; None where nothing is missing."""
    if is_callable(annotation):
        if not callable(value):
            return f"{_name(value)} cannot be called"
        return _differs(_bound(value, "__call__"), _asked_by_callable(annotation), "__call__")
    methods = dict(_methods(annotation))
    for name in sorted(_members(annotation)):
        if not _has(value, name):
            kind = "method" if name in methods else "attribute"
            return f"{_name(value)} has no {kind} {name!r}"
    for name, asked in methods.items():
        if problem := _differs(_bound(value, name), asked, name):
            return problem
    return None


def partial_lacks(function: Any, annotation: Any) -> str | None:
    """Say what a partial of a function lacks for a protocol or `Callable`, or return None."""
    if is_callable(annotation):
        asked = _asked_by_callable(annotation)
        if problem := _returns_other(function, annotation):
            return problem
    else:
        asked = dict(_methods(annotation)).get("__call__")
        for name in sorted(_members(annotation) - {"__call__"}):
            return f"a partial of {_name(function)} has no {name!r}"
    return _differs(_signature(function), asked, "__call__")


def same_types(made: Any, annotation: Any) -> bool:
    """Return whether methods have parameters of the types that a protocol asks for.

    `class_lacks` compares how methods are called, and many classes are called with two arguments.
    """
    protocol = typing.get_origin(annotation) or annotation
    if not isinstance(made, type) or protocol in made.__mro__:
        return True
    methods = [m for m in typing_extensions.get_protocol_members(protocol) if m in dir(made)]
    for name in methods:
        asked, has = _annotations(getattr(protocol, name, None)), _annotations(_called(made, name))
        if not all(map(_agree, asked, has)):
            return False
    return True


def _members(annotation: Any) -> frozenset[str]:
    protocol = typing.get_origin(annotation) or annotation
    return frozenset(typing_extensions.get_protocol_members(protocol))


def _methods(annotation: Any) -> Iterator[tuple[str, inspect.Signature]]:
    """Yield the methods that a protocol asks for, without `self`."""
    protocol = typing.get_origin(annotation) or annotation
    for name in sorted(_members(annotation)):
        if isinstance(inspect.getattr_static(protocol, name, None), types.FunctionType):
            yield name, _without_first(inspect.signature(getattr(protocol, name)))


def _method(made: type, name: str) -> inspect.Signature | None:
    """Return how a method of a class's objects is called, or None if nobody can know."""
    if name == "__call__" and _is_module(made):
        name = "forward"  # a module's __call__ takes anything
    method = inspect.getattr_static(made, name, None)
    if isinstance(method, staticmethod):
        return _signature(method.__func__)
    if isinstance(method, classmethod):
        method = method.__func__
    if not isinstance(method, types.FunctionType):
        return None
    signature = _signature(method)
    return signature and _without_first(signature)


def _bound(value: Any, name: str) -> inspect.Signature | None:
    """Return how a method of this object is called, or None if nobody can know."""
    if name == "__call__":
        if _is_module(type(value)):
            return _signature(value.forward)
        return _signature(value)
    return _signature(getattr(value, name))


def _is_module(made: type) -> bool:
    torch = sys.modules.get("torch")  # without it there is none
    return torch is not None and issubclass(made, torch.nn.Module)


def _signature(function: Any) -> inspect.Signature | None:
    if isinstance(function, _BUILTIN):
        return None  # those that have a signature often have a wrong one
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


def _without_first(signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind not in _VARIADIC:
        parameters = parameters[1:]
    return signature.replace(parameters=parameters)


def _asked_by_callable(annotation: Any) -> inspect.Signature | None:
    """Return the signature that `Callable[[A, B], C]` asks for, or None if it takes any."""
    given = typing.get_args(annotation)
    if not given or not isinstance(given[0], list):
        return None
    parameters = [
        inspect.Parameter(f"_{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(given[0]))
    ]
    return inspect.Signature(parameters)


def _returns_other(function: Any, annotation: Any) -> str | None:
    """Say if a function returns objects of another class than `Callable[..., C]` asks for."""
    given = typing.get_args(annotation)
    try:
        found = function
        if not isinstance(function, type):
            found = typing.get_type_hints(function).get("return")
    except Exception:  # evaluating an annotation may raise anything
        return None
    wanted = given[-1] if given else None
    if Any in (found, wanted) or not (isinstance(found, type) and isinstance(wanted, type)):
        return None
    numbers = (bool, int, float, complex)
    if found in numbers and wanted in numbers:
        return None
    if is_protocol(wanted) or issubclass(found, wanted) or issubclass(wanted, found):
        return None
    name = getattr(function, "__qualname__", _name(function))
    return f"{name} returns {found.__name__}, not {wanted.__name__}"


def _differs(
    has: inspect.Signature | None, asked: inspect.Signature | None, name: str
) -> str | None:
    """Say how a method cannot be called as asked for; None where it can, or nobody knows."""
    if has is None or asked is None:
        return None
    for args, kwargs, bind in _calls(has, asked):
        try:
            bind(*args, **kwargs)
        except TypeError as error:
            return f"{name}{_form(has)} cannot be called as {name}{_form(asked)}: {error}"
    return None


def _calls(
    has: inspect.Signature, asked: inspect.Signature
) -> Iterator[tuple[list[None], dict[str, None], Any]]:
    """Yield the ways in which callers may call the method that is asked for.

    They may leave out its optional arguments, and give arguments that have names by name.
    """
    parameters = list(asked.parameters.values())
    open_ended = any(p.kind in _VARIADIC for p in parameters)
    bind = has.bind_partial if open_ended else has.bind
    for optional in (False, True):
        given = [p for p in parameters if p.kind not in _VARIADIC]
        given = [p for p in given if optional or p.default is p.empty]
        for by_name in (False, True):
            positional = [
                p
                for p in given
                if p.kind is p.POSITIONAL_ONLY
                or (p.kind is p.POSITIONAL_OR_KEYWORD and not by_name)
            ]
            named = {p.name: None for p in given if p not in positional}
            yield [None] * len(positional), named, bind


def _form(signature: inspect.Signature) -> str:
    """Write the parameters of a signature without annotations."""
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def _has(value: Any, name: str) -> bool:
    if name in dir(type(value)):  # a property may read a file, so its value is not asked for
        return True
    try:
        return hasattr(value, name)
    except Exception:  # a property may raise anything before the run has begun
        return True


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def _agree(asked: Any, has: Any) -> bool:
    one, other = (set(typing.get_args(t)) if _is_union(t) else {t} for t in (asked, has))
    is_open = any(t is Any or t is object or isinstance(t, typing.TypeVar) for t in one | other)
    return is_open or one <= other


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _called(made: type, name: str) -> Any:
    return getattr(made, "forward" if name == "__call__" and _is_module(made) else name)


def _annotations(function: Any) -> list[Any]:
    """Return the annotations of a method's parameters after `self`."""
    if not callable(function):
        return []
    try:
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters)[1:]
    except Exception:  # evaluating an annotation may raise anything
        return []
    return [hints.get(name, Any) for name in parameters]

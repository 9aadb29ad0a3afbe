"""Sizes of published models as arguments of recipes.

A recipe takes all arguments of its family's model function, with the published sizes as defaults:

    @recipe
    @sized(llama3_model, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, hidden_dim=14_336)
    def llama3_8b(sequence_length: int = 8192, **sizes: Any) -> fdl.Config[Trainer]:
        return pretraining(llama3_model(**sizes), sequence_length=sequence_length, ...)

`config:llama3_8b(n_layers=16)` then trains half of the layers. Arguments that are not given keep
the recipe's values, with one exception: a number of heads without a number of KV heads keeps the
recipe's number of heads for each KV head.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from nanigpt.errors import UsageError

_MOST_LAYERS = 10_000


def sized(model: Callable, **published: Any) -> Callable[[Callable], Callable]:
    """Give a recipe the arguments of a model function, or of another recipe.

    Args:
        model: The function. The recipe has its arguments, except those that it names itself.
        **published: Values that replace the function's defaults, or give it some.
    """

    def decorate(function: Callable) -> Callable:
        own = _parameters(function)
        sizes = {
            name: parameter.replace(default=published.get(name, parameter.default))
            for name, parameter in _parameters(model).items()
            if name not in own
        }
        signature = inspect.Signature(
            [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *sizes.values())],
            return_annotation=inspect.signature(function).return_annotation,
        )

        @functools.wraps(function)
        def recipe(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if "n_layers" in given:
                require_depth(given["n_layers"])
            return function(**(published | given | _kv_heads(given, sizes)))

        recipe.__signature__ = signature  # type: ignore[attr-defined]
        recipe.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return recipe

    return decorate


def require_depth(n_layers: int) -> None:
    """Raise a UsageError for a number of layers that no config holds in a useful time."""
    if not 1 <= n_layers <= _MOST_LAYERS:
        raise UsageError(f"n_layers={n_layers}: expected 1 to {_MOST_LAYERS:,}")


def head_width(dim: int, n_heads: int) -> int:
    """Return the features of a head, if all heads together are as wide as the model.

    Raises:
        UsageError: The width is no multiple of the number of heads.
    """
    for name, size in (("n_heads", n_heads), ("dim", dim)):
        if size < 1:
            raise UsageError(f"{name}={size}: expected at least 1")
    if dim % n_heads:
        raise UsageError(f"dim={dim}: expected a multiple of n_heads={n_heads}, or head_dim too")
    return dim // n_heads


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a function with annotations that are types."""
    hints = typing.get_type_hints(function)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def _kv_heads(given: dict[str, Any], sizes: dict[str, inspect.Parameter]) -> dict[str, int]:
    """Return the number of KV heads that follows from the number of heads, if one does."""
    if "n_kv_heads" not in sizes or "n_heads" not in given or "n_kv_heads" in given:
        return {}
    group = sizes["n_heads"].default // sizes["n_kv_heads"].default
    n_heads = given["n_heads"]
    if n_heads < 1:
        raise UsageError(f"n_heads={n_heads}: expected at least 1")
    if n_heads % group:
        raise UsageError(
            f"n_heads={n_heads}: expected a multiple of {group}, since {group} heads share a KV "
            "head, or n_kv_heads too"
        )
    return {"n_kv_heads": n_heads // group}

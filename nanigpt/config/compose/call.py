"""`name` or `name(arguments)` of a directive."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanigpt.config.compose.items import split_items
from nanigpt.config.values import argument_annotation, parse_value
from nanigpt.errors import UsageError


@dataclass(frozen=True)
class Call:
    """A name and the source of the arguments that stand behind it."""

    name: str
    args: tuple[str, ...] = ()
    kwargs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Parse `name`, `name()` or `name(1, key=text)`.

        Raises:
            UsageError: The text has another form.
        """
        if text.isidentifier():
            return cls(text)
        expected = UsageError(f"expected NAME or NAME(3, key=text), not {text!r}")
        name, _, inside = text.partition("(")
        if not name.isidentifier() or not inside.endswith(")"):
            raise expected
        inside = inside[:-1].strip()
        try:
            items = split_items(inside.removesuffix(",")) if inside else []
        except UsageError:
            raise expected from None
        args: list[str] = []
        kwargs: list[tuple[str, str]] = []
        for item in items:
            keyword = re.match(r"([^\W\d]\w*)\s*=(?!=)\s*(.+)", item, re.DOTALL)
            if keyword:
                kwargs.append((keyword[1], keyword[2]))
            elif kwargs or item.startswith("*"):
                raise expected
            else:
                args.append(item)
        names = [name for name, _ in kwargs]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise UsageError(f"{twice[0]} is given twice in {text!r}; keep one of the two")
        return cls(name, tuple(args), tuple(kwargs))

    def apply(self, function: Callable[..., Any], *first: Any) -> Any:
        """Call `function(*first, *args, **kwargs)`, after converting arguments to its annotations.

        Raises:
            UsageError: The function does not take these arguments.
        """
        parameters = list(inspect.signature(function).parameters.values())[len(first) :]
        form = f"{self.name}({', '.join(map(str, parameters))})"
        try:
            signature = inspect.Signature(parameters)
            bound = signature.bind(*self.args, **dict(self.kwargs))
        except TypeError as error:
            raise UsageError(f"{error}; expected {form}") from error
        for name, text in bound.arguments.items():
            try:
                bound.arguments[name] = _argument(function, signature.parameters[name], text)
            except ValueError as error:
                raise UsageError(f"{name}={text}: {error}; it is {form}") from error
        return function(*first, *bound.args, **bound.kwargs)


def _argument(function: Callable[..., Any], parameter: inspect.Parameter, text: Any) -> Any:
    annotation = argument_annotation(function, parameter.name)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(parse_value(t, annotation) for t in text)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {key: parse_value(t, annotation) for key, t in text.items()}
    return parse_value(text, annotation)

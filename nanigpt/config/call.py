"""`name` or `name(arguments)` of a directive, with literal arguments."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanigpt.errors import UsageError


@dataclass(frozen=True)
class Call:
    """A name and the arguments that stand behind it."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Reads `name`, `name()` or `name(1, key='value')`.

        Raises:
            UsageError: it is neither, or an argument is not a literal.
        """
        if text.isidentifier():
            return cls(text)
        try:
            tree = ast.parse(text, mode="eval").body
            if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
                raise ValueError("not a call of a name")
            args = tuple(ast.literal_eval(a) for a in tree.args)
            kwargs = tuple((k.arg, ast.literal_eval(k.value)) for k in tree.keywords if k.arg)
        except (SyntaxError, ValueError) as error:
            raise UsageError(
                f"{text!r}: expected a name, or a name with literal arguments such as "
                "name(3, key='text')"
            ) from error
        return cls(tree.func.id, args, kwargs)

    def apply(self, function: Callable, *first: Any) -> Any:
        """Calls `function(*first, *args, **kwargs)`.

        Raises:
            UsageError: it does not take these arguments.
        """
        signature = inspect.signature(function)
        expected = ", ".join(str(p) for p in list(signature.parameters.values())[len(first) :])
        try:
            bound = signature.bind(*first, *self.args, **dict(self.kwargs))
        except TypeError as error:
            raise UsageError(f"{error}; expected {self.name}({expected})") from error
        for name, value in list(bound.arguments.items())[len(first) :]:
            wanted = signature.parameters[name].annotation
            if wanted in (int, float, str, bool) and type(value) is not wanted:
                raise UsageError(
                    f"{name}={value!r}: expected {wanted.__name__}, as in {self.name}({expected})"
                )
        return function(*bound.args, **bound.kwargs)

"""Problems that a component reports about its own arguments.

A component knows neither its place in a config nor the command line. The config layer adds the path
of the argument, who set it, and the flag that mends it. Without a config, as in a notebook, a
problem reads well by itself: `lr=-1: expected more than 0`.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from nanigpt.errors import UsageError
from nanigpt.words import one_of


@dataclass(frozen=True)
class Fix:
    """A value that mends a problem: `Fix(mesh, "tp", 1)` for `mesh.tp = 1`.

    Attributes:
        component: object whose argument it is; None stands for the component that reports.
        argument: name of the argument, or the path to it from the component: `layers[3].norm`.
        value: value to set. A class or function stands for a new component of that kind.
    """

    component: object | None
    argument: str
    value: Any

    def __post_init__(self):
        if not isinstance(self.argument, str):
            raise TypeError(f"argument={self.argument!r}: expected str")

    def __str__(self) -> str:
        return f"{self.argument}={show(self.value)}"


@dataclass(frozen=True)
class Problem:
    """An argument of a component, and the value that was expected instead.

    Attributes:
        argument: name of the argument, or the path to it from the component: `layers[3].norm`.
            An empty one stands for the component as a whole.
        value: value that was given; `...` leaves it out of the message.
        expected: end of the sentence "expected ...": `a multiple of tp=4`.
        fix: how to mend it: one Fix, several that belong together, or words.
        component: object whose argument it is; None stands for the component that reports.
        given: further arguments that the expectation follows from; the config layer says who set
            them. One of another component than the problem's is a pair (component, argument).
    """

    argument: str
    value: Any
    expected: str
    fix: Fix | tuple[Fix, ...] | str | None = None
    component: object | None = None
    given: tuple[str | tuple[object, str], ...] = ()

    def __post_init__(self):
        if not isinstance(self.argument, str):
            raise TypeError(f"argument={self.argument!r}: expected str")

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """Return the values to set; none if `fix` is text or None."""
        if isinstance(self.fix, Fix):
            return (self.fix,)
        return self.fix if isinstance(self.fix, tuple) else ()

    def __str__(self) -> str:
        return f"{self.message()}; try {self.words()}" if self.words() else self.message()

    def words(self) -> str:
        """Return the fix as text, which is empty if there is no fix."""
        return self.fix if isinstance(self.fix, str) else " and ".join(map(str, self.fixes))

    def message(self, argument: str | None = None) -> str:
        """Return the text of the problem without its fix.

        Args:
            argument: Name to write in place of the argument's own name.
        """
        argument = self.argument if argument is None else argument
        subject = argument
        if self.value is not ...:
            subject = f"{argument}={show(self.value)}" if argument else show(self.value)
        return f"{subject}: expected {self.expected}" if subject else f"expected {self.expected}"


class ComponentError(UsageError):
    """Error of a component that refuses its arguments.

    Attributes:
        problems: The problems of the arguments, at least one.
    """

    def __init__(self, *problems: Problem):
        if not problems:
            raise TypeError("ComponentError: expected at least one problem")
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(map(str, self.problems)))

    def within(self, where: str) -> UsageError:
        """Return an error whose message begins with the place where it arose."""
        return UsageError(f"{where}: {self}")


def refuse(
    argument: str,
    value: Any,
    expected: str,
    fix: Fix | tuple[Fix, ...] | str | None = None,
    *,
    component: object | None = None,
    given: tuple[str | tuple[object, str], ...] = (),
) -> NoReturn:
    """Raise the ComponentError of one problem; the arguments are those of `Problem`."""
    raise ComponentError(Problem(argument, value, expected, fix, component, given))


def reported(component: object, answer: Any, method: str = "problems") -> list[Problem]:
    """Return the problems that a component's method returned, or a problem with what it returned.

    Args:
        component: Component that was asked, which may be the user's.
        answer: What its method returned: an iterable of problems.
        method: Name of the method.
    """
    is_one = isinstance(answer, str) or not isinstance(answer, Iterable)
    found = [answer] if is_one else list(answer)
    wrong = [problem for problem in found if is_one or not isinstance(problem, Problem)]
    if not wrong:
        return found
    expected = f"{method}() that returns a list of nanigpt.problems.Problem, not "
    expected += show(answer) if is_one else f"one that has {show(wrong[0])}"
    return [Problem("", ..., expected, component=component)]


def refuse_all(problems: Iterable[Problem]) -> None:
    """Raise the ComponentError of the given problems, unless there are none."""
    if found := tuple(problems):
        raise ComponentError(*found)


def require_finite(**values: float) -> None:
    """Raise a ComponentError that names each argument that is infinite, or no number."""
    refuse_all(Problem(k, v, "a finite number") for k, v in values.items() if not math.isfinite(v))


def require_positive(**values: float) -> None:
    """Raise a ComponentError that names each argument that is infinite, or not more than 0."""
    refuse_all(Problem(k, v, "more than 0") for k, v in values.items() if not v > 0)
    require_finite(**values)


def require_not_negative(**values: float) -> None:
    """Raise a ComponentError that names each argument that is infinite, or below 0."""
    refuse_all(Problem(k, v, "0 or more") for k, v in values.items() if not v >= 0)
    require_finite(**values)


def require_choice(choices: Iterable[Any], **values: Any) -> None:
    """Raise a ComponentError that names each argument that is none of the choices."""
    known = tuple(choices)
    expected = one_of(map(show, known))
    refuse_all(Problem(k, v, expected) for k, v in values.items() if v not in known)


@contextlib.contextmanager
def on_behalf_of(component: object) -> Iterator[None]:
    """Attribute problems that name no component to this one.

    A function, such as the one that makes an optimizer, cannot name the partial that calls it.
    """
    try:
        yield
    except ComponentError as error:
        owned = (
            replace(problem, component=component) if problem.component is None else problem
            for problem in error.problems
        )
        raise ComponentError(*owned) from error.__cause__


def show(value: Any) -> str:
    """Return the text of a value in messages; for an object without a short form, its class."""
    if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
        return value.__name__
    text = repr(value)
    has_no_form = "\n" in text or " object at 0x" in text or len(text) > 200
    return type(value).__name__ if has_no_form else text.removeprefix("torch.")


def first_line(error: Exception) -> str:
    """Return the class of an error, and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]

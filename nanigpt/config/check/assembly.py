"""The objects that a config describes, and the path of each."""

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import fiddle as fdl
import torch
from fiddle import daglish

from nanigpt.config.check.findings import Finding, report
from nanigpt.config.check.slots import built_findings, element
from nanigpt.config.check.static import elements, static_findings
from nanigpt.config.fold import Path
from nanigpt.config.locate import value_at
from nanigpt.config.paths import argument_names, parse_path
from nanigpt.config.recursion import TOO_DEEP
from nanigpt.errors import UsageError
from nanigpt.problems import ComponentError, Problem

_FAILED = types.SimpleNamespace()


class Assembly:
    """Everything that a config builds, or what is wrong with it.

    A node with a mistake is not built, nor are the nodes that hold it, so that each mistake is
    found once.

    Attributes:
        root: what the config builds; None where something is wrong.
        findings: everything that is wrong.
    """

    def __init__(
        self,
        cfg: fdl.Buildable,
        *,
        directives: Sequence[str] | None = None,
        on_built: Callable[[fdl.Buildable, Any], None] | None = None,
    ):
        """Build a config, on meta where something is wrong anyway.

        Args:
            directives: what the command line said, for the commands in messages.
            on_built: called with each node and the object it built, from the leaves up.
        """
        self.cfg = cfg
        self.root: Any = None
        self._directives = directives
        self._on_built = on_built
        self._nodes: dict[int, list[tuple[fdl.Buildable, Path]]] = {}
        self._kept: list[Any] = []  # no object's id is used twice
        found = static_findings(cfg)
        self.findings = [finding for _, finding in found]
        self._broken = {broken for broken, _ in found if broken is not None}
        try:
            with torch.device("meta") if found else contextlib.nullcontext():
                root = daglish.MemoizedTraversal.run(self._build, cfg)
        except RecursionError:
            if not found:
                self.findings.append(Finding((), f": the config {TOO_DEEP}"))
            return
        if not self.findings:
            self.root = root

    def check(self, *further: Callable[[Any], Iterable[Problem] | None]) -> None:
        """Raise what is wrong, and if nothing is, what the cross-checks find.

        Args:
            further: called with the root, all of them; each returns problems, or raises them.

        Raises:
            UsageError: something is wrong; the message has all of it.
        """
        findings = list(self.findings)
        if not findings:
            for function in further:
                try:
                    problems = tuple(function(self.root) or ())
                except ComponentError as error:
                    problems = error.problems
                findings += [self.find(problem) for problem in problems]
        if findings:
            raise UsageError(report(self.cfg, findings, self._directives))

    def missing(self) -> Iterator[Problem]:
        """Yield what components need and this machine lacks, such as files; open no file.

        A component that needs something says so by a method `missing`, which returns problems.
        """
        for component in self._kept:
            method = getattr(component, "missing", None)
            # A module's parameters and a class itself have no such method.
            for problem in method() if isinstance(method, types.MethodType) else ():
                yield problem if problem.component else replace(problem, component=component)

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Turn a ComponentError of an object of this config into a UsageError with its path."""
        try:
            yield
        except ComponentError as error:
            findings = [self.find(problem) for problem in error.problems]
            raise UsageError(report(self.cfg, findings, self._directives)) from error

    def find(self, problem: Problem, reporter: Path | None = None) -> Finding:
        """Find the place of a problem.

        Args:
            reporter: path of the node whose constructor reports it; None stands for a report of the
                root, after the build.
        """
        path, blamed = self._place(problem.component, problem.argument, reporter), None
        if path is not None and problem.argument:
            text = f"{': ' if problem.value is ... else '='}{problem.message('')}"
        else:
            path, text = self._place(problem.component, "", reporter), problem.message()
            if path is None:  # the component is no part of the config
                path, text = (), f"{type(problem.component).__name__}.{text}"
            elif path:
                text = f": {text}"
            blamed = _with_arguments(self.cfg, path)
        if problem.given:
            pairs = (g if isinstance(g, tuple) else (problem.component, g) for g in problem.given)
            further = (self._place(component, name, reporter) for component, name in pairs)
            blamed = (*(blamed or (path,)), *(place for place in further if place is not None))
        settings = []
        for fix in problem.fixes:
            component = problem.component if fix.component is None else fix.component
            place = self._place(component, fix.argument, reporter)
            settings += [] if place is None else [(place, fix.value)]
        if len(settings) < len(problem.fixes):
            settings = []
        advice = f"try {problem.words()}" if problem.words() else ""
        return Finding(path, text, advice, tuple(settings), blamed)

    def _place(self, component: object | None, argument: str, reporter: Path | None) -> Path | None:
        """Return the path of a component's argument, or None if no path leads there."""
        try:
            below = tuple(parse_path(argument)) if argument else ()
        except UsageError:  # such as `a and b`
            return None
        if component is None:
            return (*(reporter or ()), *below)
        built = self._nodes.get(id(component), [])
        # A function may return what it was given; the node that has the argument is meant.
        fitting = [path for node, path in built if below and below[0] in argument_names(node)]
        nodes = fitting or [path for _, path in built] or self._held(component)
        if not nodes and reporter is not None:
            nodes = [reporter]  # the component that is not built for its problems
        return (*nodes[0], *below) if nodes else None

    def _held(self, component: object) -> list[Path]:
        """Return paths to an object that a built one holds, the nearest first."""
        found = []
        for made in self._kept:
            inside: dict[str, Any] = dict(getattr(made, "__dict__", {}))
            if isinstance(made, torch.nn.Module):
                inside |= dict(made.named_modules())
            names = [name for name, value in inside.items() if value is component]
            for _, path in self._nodes[id(made)] if names else ():
                steps = [int(step) if step.isdigit() else step for step in names[0].split(".")]
                found.append((len(steps), (*path, *steps)))
        return [path for _, path in sorted(found, key=lambda pair: pair[0])]

    def _build(self, value: Any, state: daglish.State) -> Any:
        if not isinstance(value, fdl.Buildable):
            return state.map_children(value) if state.is_traversable(value) else value
        children = state.flattened_map_children(value)
        arguments = children.metadata.arguments(children.values)
        if id(value) in self._broken or _failed(list(arguments.values())):
            return _FAILED
        path = elements(self.cfg, state.current_path)
        unfit = list(built_findings(value, arguments, path))
        if unfit:
            self.findings += unfit
            return _FAILED
        try:
            made = call(value, arguments)
        except ComponentError as error:
            self.findings += [self.find(problem, path) for problem in error.problems]
            return _FAILED
        except Exception as error:  # a constructor may raise anything; all are reported by path
            kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
            said = str(error).partition("\nException raised from")[0]  # torch adds its own stack
            self.findings.append(
                Finding(path, f": {kind}{said}", blamed=_with_arguments(self.cfg, path))
            )
            return _FAILED
        if not isinstance(made, (type(None), bool, int, float, str, type)):
            self._nodes.setdefault(id(made), []).append((value, path))
            self._kept.append(made)
        if self._on_built is not None:
            self._on_built(value, made)
        return made


def _with_arguments(cfg: fdl.Buildable, path: Path) -> tuple[Path, ...]:
    """Return a path, and the paths of the arguments of the node there."""
    node = value_at(cfg, path)
    given = fdl.ordered_arguments(node) if isinstance(node, fdl.Buildable) else ()
    return (path, *((*path, element(name)) for name in given))


def call(node: fdl.Buildable, arguments: dict[str | int, Any]) -> Any:
    """Build a node from its built arguments, some of which may be positional."""
    args, kwargs = node.__signature_info__.transform_to_args_kwargs(arguments)
    return node.__build__(*args, **kwargs)


def _failed(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_failed, value))
    return value is _FAILED

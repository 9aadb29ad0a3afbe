"""A config as Python that builds an equal one."""

import builtins
import enum
import keyword
import math
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fiddle as fdl

from nanigpt.config.paths import join
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.recursion import refuses_depth
from nanigpt.config.sharing import Sharing
from nanigpt.errors import UsageError

_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_WIDTH = 100
_TAB = "    "


@refuses_depth
def to_python(cfg: fdl.Buildable) -> str:
    """Return a module whose function `config()` returns an equal config.

    The result has the same sharing and tags. A loop makes equal neighbours of a list.

    Raises:
        UsageError: A value cannot be written. The message has its path.
    """
    writer, scope = Writer(cfg), Scope()
    scope.add("return ", writer.value(cfg, scope, ""))
    title = f'"""A config of fingerprint {fingerprint(cfg)[:8]}."""'
    head = f"def config() -> fdl.{type(cfg).__name__}:"
    return "\n".join([title, "", *writer.imports.lines(), "", "", head, *scope.lines, ""])


@dataclass(frozen=True)
class Group:
    """Source that may stand on one line, or on one line for each item."""

    opening: str
    items: tuple["str | Group", ...]
    closing: str


@dataclass
class Scope:
    """The body of a function so far.

    Attributes:
        own: ids of what belongs to it where it needs a variable; the outermost takes all others.
        variables: what nodes, lists and dicts are called that have one.
    """

    lines: list[str] = field(default_factory=list)
    parent: "Scope | None" = None
    own: frozenset[int] = frozenset()
    variables: dict[int, str] = field(default_factory=dict)
    depth: int = 1

    def add(self, statement: str, value: "str | Group" = "") -> None:
        """Add a statement that ends with a value."""
        self.lines.append(
            _TAB * self.depth + statement + _render(value, self.depth, len(statement))
        )

    def find(self, value: Any) -> str | None:
        """Return the variable of a value in this scope or an outer one."""
        if id(value) in self.variables or self.parent is None:
            return self.variables.get(id(value))
        return self.parent.find(value)

    def home(self, value: Any) -> "Scope":
        """Return the innermost scope that is visible to all holders of the value."""
        scope = self
        while scope.parent is not None and id(value) not in scope.own:
            scope = scope.parent
        return scope


class Imports:
    """Names of a module: what is imported, and variables."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._taken = {"fdl", "config", "cfg", "torch", *keyword.kwlist, *dir(builtins)}
        self._torch = False

    def name(self, value: Any, path: str) -> str:
        """How a class or function is written, after its import."""
        module, qualname = _import_name(value, path)
        if module == "builtins":
            return qualname
        top, dot, rest = qualname.partition(".")
        if (module, top) not in self._names:
            alias = top if top not in self._taken else f"{module.rpartition('.')[2]}_{top}"
            self._names[module, top] = self.variable(alias)
        return self._names[module, top] + dot + rest

    def dtype(self, value: Any) -> str:
        self._torch = True
        return str(value)

    def variable(self, wish: str) -> str:
        """Return a name that is not taken yet."""
        wish = wish if wish.isidentifier() else "node"
        numbered = (wish if n == 1 else f"{wish}_{n}" for n in range(1, len(self._taken) + 2))
        name = next(n for n in numbered if n not in self._taken)
        self._taken.add(name)
        return name

    def lines(self) -> Iterator[str]:
        yield "import fiddle as fdl"
        if self._torch:
            yield "import torch"
        yield ""
        modules: dict[str, list[str]] = {}
        for (module, name), alias in sorted(self._names.items()):
            renamed = f"{name} as {alias}" if alias != name else name
            modules.setdefault(module, []).append(renamed)
        for module, names in modules.items():
            yield f"from {module} import {', '.join(names)}"


class Writer:
    """Writes values of one DAG.

    Attributes:
        known: paths of nodes, lists and dicts that are there already, by id; they are not written
            but referred to.
        captured: (variable, path) of those that were.
    """

    def __init__(self, cfg: fdl.Buildable):
        self.imports = Imports()
        self.known: dict[int, str] = {}
        self.captured: dict[int, tuple[str, str]] = {}
        self.sharing = Sharing(cfg)

    def value(self, value: Any, scope: Scope, path: str) -> "str | Group":
        """Return the source of a value, after adding the statements that it needs to the scope."""
        if id(value) in self.known:
            if id(value) not in self.captured:
                known = self.known[id(value)]
                self.captured[id(value)] = (self.imports.variable(_last_name(known)), known)
            return self.captured[id(value)][0]
        if isinstance(value, fdl.Buildable):
            return self._node(value, scope, path)
        if not isinstance(value, (list, dict)) or not self.sharing.is_shared(value):
            return self._content(value, scope, path)
        if variable := scope.find(value):
            return variable
        home = scope.home(value)
        return self._variable(value, self._content(value, home, path), home, path)

    def _content(self, value: Any, scope: Scope, path: str) -> "str | Group":
        if isinstance(value, dict):
            pairs = (
                _prefixed(f"{self._flat(k, scope, path)}: ", self.value(v, scope, join(path, (k,))))
                for k, v in value.items()
            )
            return Group("{", tuple(pairs), "}")
        if isinstance(value, list):
            items = tuple(self._elements(value, scope, path))
            if len(items) == 1 and isinstance(items[0], str) and items[0].startswith("*("):
                return f"[{items[0][2:-1]}]"
            return Group("[", items, "]")
        if isinstance(value, tuple):
            items = tuple(self.value(v, scope, join(path, i)) for i, v in enumerate(value))
            if hasattr(value, "_fields"):
                return Group(f"{self.imports.name(type(value), path)}(", items, ")")
            return Group("(", items, ",)" if len(items) == 1 else ")")
        if isinstance(value, (set, frozenset)):
            elements = sorted(self._flat(v, scope, path) for v in value)
            return Group(f"{type(value).__name__}([", tuple(elements), "])")
        return self._leaf(value, path)

    def tag_statements(
        self, target: str, have: dict[str, set[Any]], want: dict[str, set[Any]]
    ) -> Iterator[str]:
        """Statements that turn the tags of a node's arguments into others."""
        for name in {**have, **want}:
            old, new = have.get(name, set()), want.get(name, set())
            for verb, tags in (("remove", old - new), ("add", new - old)):
                for tag in sorted(tags, key=lambda t: t.__qualname__):
                    yield f"fdl.{verb}_tag({target}, {name!r}, {self.imports.name(tag, target)})"

    def _node(self, node: fdl.Buildable, scope: Scope, path: str) -> "str | Group":
        if variable := scope.find(node):
            return variable
        shared = self.sharing.is_shared(node)
        home = scope.home(node) if shared else scope
        written = self._call(node, home, path)
        have = type(node)(fdl.get_callable(node)).__argument_tags__
        want = node.__argument_tags__
        if not shared and not any(self.tag_statements("", have, want)):
            return written
        variable = self._variable(node, written, home, path)
        for statement in self.tag_statements(variable, have, want):
            home.add(statement)
        return variable

    def _variable(self, value: Any, written: "str | Group", home: Scope, path: str) -> str:
        variable = self.imports.variable(_last_name(path) or "root")
        home.variables[id(value)] = variable
        home.add(f"{variable} = ", written)
        return variable

    def _call(self, node: fdl.Buildable, scope: Scope, path: str) -> Group:
        items: list[str | Group] = [self.imports.name(fdl.get_callable(node), path)]
        given, parameters = fdl.ordered_arguments(node), node.__signature_info__.parameters
        # What stands before *args must be positional too.
        n_positional = max((name + 1 for name in given if isinstance(name, int)), default=0)
        names = [*list(parameters)[:n_positional], *range(n_positional)][:n_positional]
        odd: list[str | Group] = []
        for name, value in given.items():
            written = self.value(value, scope, join(path, name))
            if len(items) <= n_positional:
                position = len(items) - 1
                if name not in (position, names[position]):
                    raise UsageError(
                        f"{join(path, name)}: cannot be written as Python: a positional argument "
                        "before it is not set"
                    )
                items.append(written)
            elif name.isidentifier() and not keyword.iskeyword(name):
                items.append(_prefixed(f"{name}=", written))
            else:
                odd.append(_prefixed(f"{self._leaf(name, path)}: ", written))
        if odd:
            items.append(Group("**{", tuple(odd), "}"))
        return Group(f"fdl.{type(node).__name__}(", tuple(items), ")")

    def _elements(self, values: list[Any], scope: Scope, path: str) -> Iterator["str | Group"]:
        for start, stop in self._runs(values):
            at = join(path, start)
            if stop - start < 2 or not isinstance(values[start], fdl.Buildable):
                for i in range(start, stop):
                    yield self.value(values[i], scope, join(path, i))
                continue
            yield f"*({self._function(values[start], scope, at)}() for _ in range({stop - start}))"

    def _function(self, node: fdl.Buildable, scope: Scope, path: str) -> str:
        """Add a function to the scope that makes nodes like this one, and return its name."""
        name = self.imports.variable(_snake(fdl.get_callable(node).__name__))
        own = self.sharing.internal(node)
        inner = Scope(parent=scope, own=own, depth=scope.depth + 1)
        inner.add("return ", self.value(node, inner, path))
        head = f"{_TAB * scope.depth}def {name}() -> fdl.{type(node).__name__}:"
        scope.lines.extend(["", head, *inner.lines, ""])
        return name

    def _runs(self, values: list[Any]) -> Iterator[tuple[int, int]]:
        start, keys = 0, [self._key(v) for v in values]
        for stop in range(1, len(values) + 1):
            if stop == len(values) or keys[stop] != keys[start]:
                yield start, stop
                start = stop

    def _key(self, value: Any) -> Any:
        """Equal for nodes that the same function could make."""
        if not isinstance(value, fdl.Buildable) or self.sharing.is_shared(value):
            return object()  # like no other
        return self.sharing.key(value, known=self.known)

    def _flat(self, value: Any, scope: Scope, path: str) -> str:
        return flat(self.value(value, scope, path))

    def _leaf(self, value: Any, path: str) -> str:
        if isinstance(value, enum.Enum):
            return f"{self.imports.name(type(value), path)}.{value.name}"
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if isinstance(value, str):
            plain = repr(value)
            return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain else plain
        if value is None or isinstance(value, (bool, int, float, complex, bytes)):
            return repr(value)
        if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
            return self.imports.dtype(value)
        if isinstance(value, _NAMED):
            return self.imports.name(value, path)
        raise UsageError(f"{path}: {value!r} cannot be written as Python; use a config of it")


def _render(source: "str | Group", depth: int, used: int = 0) -> str:
    """Source at a depth of indentation, where `used` columns stand before it."""
    line = flat(source)
    if isinstance(source, str) or len(line) + used + len(_TAB) * depth < _WIDTH:
        return line
    inside = _TAB * (depth + 1)
    items = [f"{inside}{_render(item, depth + 1, 1)}," for item in source.items]
    return "\n".join([source.opening, *items, _TAB * depth + source.closing.removeprefix(",")])


def flat(source: "str | Group") -> str:
    """Return source on one line."""
    if isinstance(source, str):
        return source
    return source.opening + ", ".join(map(flat, source.items)) + source.closing


def _prefixed(prefix: str, source: "str | Group") -> "str | Group":
    if isinstance(source, str):
        return prefix + source
    return Group(prefix + source.opening, source.items, source.closing)


def _import_name(value: Any, path: str) -> tuple[str, str]:
    """Return the module and the qualified name from which a class or function can be imported."""
    own = (getattr(value, "__module__", None) or "", getattr(value, "__qualname__", ""))
    short = getattr(value, "__name__", "")  # PyTorch's builtins name classes that are not public
    for module, qualname in (own, ("torch", short), ("torch.nn.functional", short)):
        found: Any = sys.modules.get(module)
        for name in qualname.split("."):
            found = getattr(found, name, None)
        if found is not None and found == value:
            return module, qualname
    raise UsageError(f"{path}: {value!r} has no name to import it by")


def _last_name(path: str) -> str:
    names = re.findall(r"[A-Za-z_]\w*", path)
    return names[-1] if names else ""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

"""Records of version 0.1, which were written by Fiddle's serialization, as today's values.

Such a record is a table of objects, each with the class that it is of, its items, and metadata.
Only Fiddle's own classes are known here by the names of that day; all other names are checked where
the result is read.
"""

from collections.abc import Callable
from typing import Any

from nanigpt.config.record.decode_values import MOST
from nanigpt.errors import UsageError

_NODES = {
    ("fiddle._src.config", "Config"): "@",
    ("fiddle._src.partial", "Partial"): "@partial",
    ("fiddle._src.partial", "ArgFactory"): "@arg_factory",
    ("fiddle._src.config", "TaggedValueCls"): "@tagged",
}
_RENAMED = {("fiddle._src.config", "tagged_value_fn"): "fiddle:TaggedValue"}


def is_first_format(record: Any) -> bool:
    """Return whether a value of JSON looks like a record of version 0.1."""
    return isinstance(record, dict) and {"root", "objects"} <= record.keys()


def converted(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of version 0.1 in the second format.

    The defaults of that day are unknown, so that a default that changed has its value of today.

    Raises:
        UsageError: The record is damaged.
    """
    try:
        return _Conversion(record).result
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"it is a damaged config of version 0.1 ({type(error).__name__}: {error})"
        ) from error


class _Conversion:
    def __init__(self, record: dict[str, Any]):
        self._objects = record["objects"]
        self._counts = record.get("refcounts", {})
        self._shared: dict[str, Any] = {}
        self._classes: dict[str, Any] = {}
        self._size = 0
        root = self._of(record["root"])
        if not (isinstance(root, dict) and any(key in _NODES.values() for key in root)):
            raise ValueError("its root is no node")
        if self._shared:
            root["@shared"] = self._shared
        self.result = {
            "format": 2,
            "nanigpt": "0.1",
            "imports": [],
            "classes": self._classes,
            "config": root,
        }

    def _of(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return _leaf(value)
        kind = value["type"]
        if kind == "ref":
            return self._referred(value["key"])
        if kind == "pyref":
            return {"@name": _name(value)}
        if kind == "leaf":
            return _leaf(value["value"])
        return self._object(value)

    def _referred(self, key: str) -> Any:
        found = self._objects[key]
        place = _place(found["type"])
        can_be_shared = place in _NODES or place in _CONTAINERS
        if self._counts.get(key, 1) < 2 or not can_be_shared:
            return self._object(found)
        if key not in self._shared:
            self._shared[key] = None  # its place among the names, for a part that holds itself
            self._shared[key] = self._object(found)
        return {"@same": key}

    def _object(self, value: dict[str, Any]) -> Any:
        self._size += 1
        if self._size > MOST:  # what its counts do not call shared is read at each place
            raise ValueError(f"more than {MOST:,} objects")
        place = _place(value["type"])
        values = [self._of(item) for _, item in value["items"]]
        if place in _NODES:
            return self._node(_NODES[place], values, self._plain(value["metadata"]))
        if place in _FORMS:
            return _FORMS[place](values, self._plain(value["metadata"]))
        # A named tuple: its class is its own metadata.
        return {"@tuple": values, "@of": _name(value["type"])}

    def _node(self, kind: str, values: list[Any], metadata: list[Any]) -> dict[str, Any]:
        function, names, tags = metadata[:3]
        short = function if isinstance(function, str) else function["@name"]
        self._classes[short] = {"name": short, "defaults": {}}
        node: dict[str, Any] = {kind: short}
        odd = []
        for name, value in zip(names, values, strict=True):
            if isinstance(name, str) and not name.startswith("@"):
                node[name] = value
            else:
                odd.append([name, value])
        if odd:
            node["@args"] = odd
        if tags:
            node["@tags"] = [[name, given] for name, given in tags.items()]
        return node

    def _plain(self, value: Any) -> Any:
        """Return metadata: lists for tuples and sets, and text for a class or function."""
        if not isinstance(value, dict):
            return value
        if value["type"] == "ref":
            return self._plain(self._objects[value["key"]])
        if value["type"] == "pyref":
            return _name(value)
        if value["type"] == "leaf":
            return value["value"]
        found = [self._plain(item) for _, item in value["items"]]
        if _place(value["type"]) == ("builtins", "dict"):
            return dict(zip(self._plain(value["metadata"]), found, strict=True))
        return found


def _place(kind: dict[str, str]) -> tuple[str, str]:
    return kind["module"], kind["name"]


def _name(reference: dict[str, str]) -> str:
    place = _place(reference)
    return _RENAMED.get(place, ":".join(place))


def _leaf(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise ValueError(f"{value!r} is no leaf")
    return value


def _dict(values: list[Any], keys: list[Any]) -> Any:
    pairs = [[key, value] for key, value in zip(keys, values, strict=True)]
    if all(isinstance(key, str) and not key.startswith("@") for key in keys):
        return dict(pairs)
    return {"@dict": pairs}


def _partial(values: list[Any], _: Any) -> dict[str, Any]:
    function, args, keywords = values
    return {"@functools.partial": [function["@name"], args["@tuple"], keywords]}


def _bytes(values: list[Any], _: Any) -> dict[str, str]:
    return {"@bytes": values[0].encode("raw_unicode_escape").hex()}


# What becomes of an object of a class, from its items and its metadata.
_FORMS: dict[tuple[str, str], Callable[[list[Any], Any], Any]] = {
    ("builtins", "list"): lambda values, _: values,
    ("builtins", "dict"): _dict,
    ("builtins", "set"): lambda values, _: {"@set": values},
    ("builtins", "tuple"): lambda values, _: {"@tuple": values},
    ("builtins", "frozenset"): lambda values, _: {"@frozenset": values},
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): lambda values, _: {"@complex": [float(v) for v in values]},
    ("builtins", "slice"): lambda values, _: {"@slice": values},
    ("fiddle._src.signatures", "NoValue"): lambda *_: {"@name": "fiddle:NO_VALUE"},
    ("functools", "partial"): _partial,
    ("pathlib", "Path"): lambda values, _: {"@path": values[0]},
    ("torch", "device"): lambda values, _: {"@device": values[0]},
}
_CONTAINERS = tuple(("builtins", name) for name in ("list", "dict", "set"))

"""The values of a file by dotted key, of which a translation takes those that it understands."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from nanigpt.errors import UsageError
from nanigpt.words import one_of

T = TypeVar("T", bool, int, float, str)


class Keys:
    """The values of a file by dotted key.

    Args:
        content: The file as nested dicts.

    Attributes:
        left: Keys that were not carried, with their values and the reasons.
    """

    def __init__(self, content: Mapping[str, Any]):
        self._values = dict(_flat(content, ""))
        self.left: list[tuple[str, Any, str]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: T) -> T:
        """Take a value of the default's type. A missing one, or null, is the default.

        Raises:
            UsageError: The value has another type.
        """
        value = self._values.pop(key, None)
        return default if value is None else _converted(key, value, type(default))

    def peek(self, key: str, default: T) -> T:
        """Return what `take` would, and leave it there."""
        value = self._values.get(key)
        return default if value is None else _converted(key, value, type(default))

    def choose(self, key: str, *choices: str) -> str:
        """Take one of several words; the first is the default.

        Raises:
            UsageError: The value is another one.
        """
        value = self.take(key, choices[0])
        if value not in choices:
            raise UsageError(f"{key}={value!r}: expected {one_of(map(repr, choices))}")
        return value

    def find(self, key: str, kind: type[T]) -> T | None:
        """Take a value of a type, or return None if it is missing or null."""
        value = self._values.pop(key, None)
        return None if value is None else _converted(key, value, kind)

    def first(self, *keys: str) -> str:
        """Return the key that the file has, of several names of one thing, or the first name."""
        return next((key for key in keys if key in self._values), keys[0])

    def words(self, key: str) -> list[str]:
        """Take a list of words, or a text in which commas separate them."""
        value = self._values.pop(key, None) or []
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise UsageError(f"{key}={value!r}: expected a list of words")
        return [word.strip() for word in listed if word.strip()]

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Take a list of numbers."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, list) or len(value) != len(default):
            raise UsageError(f"{key}={value!r}: expected {len(default)} numbers")
        return tuple(_converted(key, number, float) for number in value)

    def neutral(self, values: Mapping[str, Any]) -> None:
        """Drop keys whose values say what is so anyway. Others stay."""
        for key, value in values.items():
            if key in self._values and self._values[key] in (value, None):
                del self._values[key]

    def without_effect(self, prefix: str) -> None:
        """Drop a section that the file switches off."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            del self._values[key]

    def leave(self, key: str, reason: str) -> None:
        """Note that a key was not carried, if the file has it."""
        if key in self._values:
            self.left.append((key, self._values.pop(key), reason))

    def leave_section(self, prefix: str, reason: str) -> None:
        """Note that no key of a section was carried."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            self.leave(key, reason)

    def rest(self) -> None:
        """Note all keys that nobody took."""
        self.leave_section("", "nanigpt has no such setting")


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _converted(key: str, value: Any, kind: type[T]) -> T:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return kind(value)  # YAML reads 2e-5 as a text
        except (ValueError, OverflowError):
            pass
    if type(value) is not kind:
        raise UsageError(f"{key}={value!r}: expected {kind.__name__}")
    return value

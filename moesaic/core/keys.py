"""Reading a JSON object: every key is read, ignored by name, or refused. Torch-free."""

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args

from moesaic.core.errors import ConfigError, UnsupportedError, nearest

_REQUIRED = object()
MOST = (1 << 63) - 1  # of a number, in size


class KeyReader:
    """Hands out the values of a JSON object and remembers which keys were understood.

    `read` and `require` take a type, or a union of types, that the JSON value must have; int is also fine where
    float is asked for, true and false are never numbers. JSON null counts as None, not as an absent key.
    """

    subject = "the stored numbers mean"  # what keys that are not understood might change
    _metadata: frozenset[str] = frozenset()  # keys that are understood wherever they stand

    def __init__(self, values: Mapping[str, Any], path: str, prefix: str = "") -> None:
        """`path` and `prefix`: the file and the object in it, for messages."""
        self.path = path
        self._values = values
        self._prefix = prefix
        self._known: set[str] = set()
        self._other_names: dict[str, str] = {}
        self._children: list[KeyReader] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def require(self, kind: Any, key: str, *aliases: str) -> Any:
        """The value of `key` (or of one of its other names), which must be there."""
        return self._get(kind, (key, *aliases), _REQUIRED)

    def read(self, kind: Any, key: str, *aliases: str, absent: Any) -> Any:
        """The value of `key`, or `absent`: what whoever wrote the object means by a missing key."""
        return self._get(kind, (key, *aliases), absent)

    def value(self, key: str) -> Any:
        """The value of `key`, which must be there, of whatever type."""
        self._known.add(key)
        if key not in self._values:
            raise ConfigError(f"{self.path}: {self._prefix}{key} is missing")
        return self._values[key]

    def positive(self, key: str, *, absent: int) -> int:
        """The value of `key`, an integer that must be at least 1, or `absent`."""
        value = int(self.read(int, key, absent=absent))
        if value < 1:
            raise self.error(key, "must be at least 1")
        return value

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing of what is computed."""
        self._known.update(keys)

    def refuse_unless(self, key: str, *values: Any) -> None:
        """Raise UnsupportedError unless `key` is absent or has one of the values that are implemented."""
        self._known.add(key)
        if key in self._values and self._values[key] not in values:
            allowed = " or ".join(json.dumps(v) for v in values)
            raise UnsupportedError(
                f"{self.path}: {self._prefix}{key} = {json.dumps(self._values[key])} is not supported; "
                f"only {allowed} is"
            )

    def child(self, key: str, *aliases: str) -> "KeyReader":
        """A reader of the object under `key` (of an empty one where it is absent or null); `finish` covers it."""
        child = KeyReader(*self._object(key, aliases))
        self._children.append(child)
        return child

    def _object(self, key: str, aliases: tuple[str, ...]) -> tuple[dict[str, Any], str, str]:
        """What a reader of the object under `key` is made of."""
        given = [k for k in (key, *aliases) if self._values.get(k) is not None]
        if len(given) > 1:
            raise ConfigError(f"{self.path}: {' and '.join(given)} name the same thing; keep one of them")
        self.ignore(key, *aliases)
        values = self.require(dict, given[0]) if given else {}
        return values, self.path, f"{self._prefix}{given[0] if given else key}."

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about the value of `key`, to raise."""
        return ConfigError(f"{self.path}: {self._prefix}{key} = {json.dumps(self._values.get(key))}: {problem}")

    def finish(self) -> None:
        """Raise UnsupportedError for all keys that nobody asked for: they may change what is meant."""
        lines = [line for reader in self._readers() for line in reader._untouched()]
        if lines:
            raise UnsupportedError(
                f"{self.path}: not understood, and might change what {self.subject}:\n  " + "\n  ".join(lines)
            )

    def _readers(self) -> "list[KeyReader]":
        """This one and all under it."""
        return [self, *(reader for child in self._children for reader in child._readers())]

    def _untouched(self) -> list[str]:
        lines = []
        for key in self._values:
            if key in self._known or key in self._metadata:
                continue
            close = nearest(key, self._known)
            hint = f" (nearest understood key: {close[0]})" if close else ""
            lines.append(f"{self._prefix}{key} = {short(self._values[key])}{hint}")
        return lines

    def _get(self, kind: Any, keys: tuple[str, ...], absent: Any) -> Any:
        keys = (*keys, *(self._other_names[key] for key in keys if key in self._other_names))
        self._known.update(keys)
        present = [key for key in keys if key in self._values]
        if not present:
            if absent is _REQUIRED:
                raise ConfigError(f"{self.path}: {' or '.join(self._prefix + k for k in keys)} is missing")
            return absent
        if len({json.dumps(self._values[key]) for key in present}) > 1:
            raise ConfigError(f"{self.path}: {' and '.join(present)} name the same thing but differ")
        return self._typed(kind, present[0])

    def _typed(self, kind: Any, key: str) -> Any:
        value = self._values[key]
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if isinstance(value, int | float) and not -MOST <= value <= MOST:  # NaN and infinity too
            raise ConfigError(f"{self.path}: {self._prefix}{key} is {short(value)}, which is beyond all numbers in use")
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        expected = " or ".join("null" if k is NoneType else k.__name__ for k in kinds)
        raise ConfigError(f"{self.path}: {self._prefix}{key} must be {expected}, got {short(value)}")


def short(value: Any) -> str:
    """A JSON value in a few words, for a message."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

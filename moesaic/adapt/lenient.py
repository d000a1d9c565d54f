"""Reading a config as some architecture would, whatever is missing or refused: what it has to say is written down.

Torch-free. Only for comparing architectures: what is not stated is taken from the tensors, or made up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, get_args

from moesaic.core.errors import ConfigError
from moesaic.models.aliases import field_of, stated
from moesaic.models.config_reader import METADATA, ConfigReader

STAND_INS: dict[type, Any] = {int: 1, float: 1.0, str: "", bool: False, list: [], dict: {}}


@dataclass
class Reading:
    """What one architecture said of a config.

    Attributes:
        facts: values of fields (`aliases.field_of`) that are known from elsewhere, such as the tensors.
        missing: keys that it requires, and nobody has.
        refused: values that it does not serve.
        renamed: keys that it found under another name -> that name.
    """

    facts: Mapping[str, Any]
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


class LenientReader(ConfigReader):
    """A reader that always has an answer."""

    def __init__(self, values: Mapping[str, Any], reading: Reading, prefix: str = "", metadata: bool = True) -> None:
        super().__init__(values, "config.json", prefix, metadata)
        self.reading = reading

    def refuse_unless(self, key: str, *values: Any) -> None:
        """Write down what is not served."""
        self._known.add(key)
        if key in self._values and self._values[key] not in values:
            self.reading.refused.append(f"{self._prefix}{key} = {self._values[key]!r}")

    def not_understood(self) -> list[str]:
        """Keys that nobody asked for."""
        renamed = set(self.reading.renamed.values())
        return [
            reader._prefix + key
            for reader in self._readers()
            for key in reader._values
            if key not in reader._known and key not in METADATA and key not in renamed
        ]

    def _another(self, values: Mapping[str, Any], path: str, prefix: str, metadata: bool) -> ConfigReader:
        return LenientReader(values, self.reading, prefix, metadata)

    def _get(self, kind: Any, keys: tuple[str, ...], absent: Any) -> Any:
        keys = (*keys, *(self._other_names[key] for key in keys if key in self._other_names))
        self._known.update(keys)
        fields = [name for key in keys if (name := field_of(key)) is not None]
        others = [key for name in fields for key, _ in stated(self._values, name)]
        for key in (*keys, *others):
            if key in self._values:
                try:
                    value = self._typed(kind, key)
                except ConfigError:
                    continue
                if key not in keys:
                    self.reading.renamed[keys[0]] = key
                return value
        known = next((self.reading.facts[name] for name in fields if self.reading.facts.get(name) is not None), None)
        if known is not None:
            return known
        if isinstance(absent, int | float | str | bool | list | dict | tuple | NoneType):
            return absent
        self.reading.missing.append(f"{self._prefix}{keys[0]}")
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        return next((STAND_INS[k] for k in STAND_INS if k in kinds), None)

"""Which weight is kept in which format: a scheme for the whole model, and patterns that except parts of it. Torch-free.

A pattern is a canonical name or the beginning of one, such as `layers.*.mlp.experts`: dots separate its parts, `*`
stands for any characters within a part, `0-3` for a range of numbers, `**` for any number of parts. The last pattern
that fits a weight decides.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property

from moesaic.core.config import DType
from moesaic.core.errors import ConfigError, nearest, unknown_name
from moesaic.core.formats import GROUPS, Kind, WeightFormat

FORMATS = ("none", "w8a16", "w4a16", "w8a8")
SCHEMES = ("auto", *FORMATS)
FLOAT_KIND: dict[DType, Kind] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Small, or read by row: nothing is gained, and a router that errs sends tokens elsewhere.
KEPT = (
    *("embed", "positions", "layers.*.mlp.router", "layers.*.mlp.shared_gate"),
    *("layers.*.attention.router", "layers.*.shortcut.router", "layers.*.attention.indexer.weights"),
    *("layers.*.attention.beta", "layers.*.attention.decay", "layers.*.attention.step*"),
)
OPTIONS = {"offsets": True, "symmetric": False}


@dataclass(frozen=True)
class PatternFormat:
    """One entry of a quantization config: weights under `pattern` are kept as `value` says."""

    pattern: str
    value: str


@dataclass(frozen=True)
class QuantizationPlan:
    """The format of every weight matrix of a model.

    Attributes:
        dtype: of weights that are not quantised.
        scheme: of all projections; the LM head has 8 bits in any. "auto": what a quantised checkpoint has, as `stored`
            says; "none": nothing is quantised, whatever it has.
        group_size: inputs that share a scale; 0 for a whole row.
        exceptions: in order of rising precedence.
        everywhere: the scheme is of all names, not of those under `layers` alone (hand-written models choose theirs).
        stored: canonical name, without `.weight` -> format of what keeps the checkpoint's own codes.

    Raises:
        ConfigError: a value is not one of those that there are.
    """

    dtype: DType
    scheme: str = "auto"
    group_size: int = 128
    exceptions: tuple[PatternFormat, ...] = ()
    everywhere: bool = False
    stored: Mapping[str, WeightFormat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"{unknown_name('quantization', self.scheme, SCHEMES)} (there are {', '.join(SCHEMES)})")
        if self.group_size not in GROUPS:
            raise ConfigError(f"quantization_group_size must be 32, 64, 128, or 0 for rows; got {self.group_size!r}")
        _ = self._rules  # raises for what cannot be read

    @classmethod
    def read(cls, dtype: DType, scheme: str, group_size: int, config: str | None) -> "QuantizationPlan":
        """The plan that the engine's arguments describe. Raises ConfigError."""
        return cls(dtype, scheme, group_size, parse_exceptions(config))

    @property
    def quantised(self) -> bool:
        """True when some weight may not be a plain floating-point number."""
        return self.requantised or bool(self.stored)

    @property
    def requantised(self) -> bool:
        """True when some weight may be quantised here."""
        return any(format.quantised for _, format in self._rules)

    def format_of(self, name: str) -> WeightFormat:
        """The format of the matrix with this canonical name, with or without `.weight`."""
        name = name.removesuffix(".weight")
        if (not self._rules and name not in self.stored) or _kept(re.sub(r"\d+", "0", name)):
            return self._plain
        found = (format for pattern, format in reversed(self._rules) if fits(pattern, name))
        return next(found, self.stored.get(name, self._plain))

    def format_called(self, value: str) -> WeightFormat:
        """The format that an entry of a quantization config means. Raises ConfigError for one that there is not."""
        return self._format(value)

    def check(self, names: Iterable[str]) -> None:
        """See that every exception is about some of the matrices of the model.

        Raises:
            ConfigError: naming those that fit none, each with the nearest that there is.
        """
        known = sorted({name.removesuffix(".weight") for name in names})
        wrong = []
        for exception in self.exceptions:
            found = [name for name in known if fits(exception.pattern, name)]
            if not found:
                generic = sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in known})
                close = nearest(exception.pattern, generic)
                hint = f" (nearest: {close[0]})" if close else f" (there are: {', '.join(generic[:12])})"
                wrong.append(f"{exception.pattern!r} fits no weight of this model{hint}")
            elif all(any(fits(pattern, name) for pattern in KEPT) for name in found) and exception.value != "none":
                wrong.append(f"{exception.pattern!r} is about {found[0]}, which is never quantised")
        if wrong:
            raise ConfigError(f"quantization_config: {'; '.join(wrong)}")

    @property
    def _plain(self) -> WeightFormat:
        return WeightFormat(FLOAT_KIND[self.dtype])

    @cached_property
    def _rules(self) -> list[tuple[str, WeightFormat]]:
        """(pattern, format), later ones first in rank."""
        rules = []
        if self.scheme not in ("auto", "none"):
            rules += [
                ("**" if self.everywhere else "layers", self._format(self.scheme)),
                ("lm_head", self._format("w8a16")),
            ]
        return rules + [(e.pattern, self._format(e.value, e.pattern)) for e in self.exceptions]

    def _format(self, value: str, pattern: str = "") -> WeightFormat:
        """`w4a16`, or with a group size or another option behind it: `w4a16:32`, `w4a16:64:symmetric`."""
        scheme, *options = value.split(":")
        if scheme not in FORMATS:
            raise ConfigError(f"quantization_config: {pattern}: {unknown_name('format', scheme, FORMATS)}")
        if scheme == "none":
            if options:
                raise ConfigError(f"quantization_config: {pattern}: none takes no options, got {value!r}")
            return self._plain
        kind: Kind = "w4" if scheme == "w4a16" else "w8" if scheme == "w8a16" else "w8a8"
        format = WeightFormat(kind, self.group_size, kind == "w4")
        for option in options:
            if option in OPTIONS and kind != "w8a8":
                format = replace(format, offsets=OPTIONS[option])
            elif option.isdecimal() and int(option) in GROUPS:
                format = replace(format, group=int(option))
            else:
                groups = ", ".join(map(str, GROUPS))
                raise ConfigError(
                    f"quantization_config: {pattern}: {option!r} is no option of {scheme}; there are group sizes "
                    f"({groups}){'' if kind == 'w8a8' else ', offsets and symmetric'}"
                )
        return format


def fits(pattern: str, name: str) -> bool:
    """Whether `pattern` means a name, or what it lies under: `lm_head`, `layers.*.mlp`, `layers.0-3.**.down`."""
    return _fits(_parts(pattern), tuple(name.split(".")))


@cache  # no pattern of what is kept has numbers, so that names which differ in numbers alone are looked at once
def _kept(name: str) -> bool:
    return any(fits(pattern, name) for pattern in KEPT)


@cache
def _parts(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.removesuffix(".weight").split("."))


def _fits(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(pattern[1:], name[i:]) for i in range(len(name) + (len(pattern) == 1)))
    return bool(name) and _part_fits(pattern[0], name[0]) and _fits(pattern[1:], name[1:])


@cache  # thousands of experts share a few parts
def _part_fits(pattern: str, part: str) -> bool:
    numbers = re.fullmatch(r"(\d+)-(\d+)", pattern)
    if numbers and part.isdecimal():
        return int(numbers[1]) <= int(part) <= int(numbers[2])
    return fnmatchcase(part, pattern)


def parse_exceptions(text: str | None) -> tuple[PatternFormat, ...]:
    """`pattern=format,pattern=format`, or a JSON object of the same. Raises ConfigError."""
    if not text or not text.strip():
        return ()
    if text.lstrip().startswith("{"):
        try:
            entries = list(json.loads(text).items())
        except ValueError as e:
            raise ConfigError(f"quantization_config is no JSON object: {e}") from e
    else:
        entries = [tuple(entry.split("=", 1)) for entry in text.split(",") if entry.strip()]
    for entry in entries:
        if len(entry) != 2 or not all(isinstance(part, str) and part.strip() for part in entry):
            raise ConfigError(
                f"quantization_config: cannot read {entry!r}; say pattern=format, such as lm_head=w8a16, separated by "
                "commas, or a JSON object of strings"
            )
    return tuple(PatternFormat(pattern.strip(), value.strip()) for pattern, value in entries)

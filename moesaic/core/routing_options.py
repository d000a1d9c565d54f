"""What a request may ask of its routes, each field checked as it comes: plain data, torch-free.

A `RoutingRule` changes how some layers choose experts; `core.routing` says what rules come to for a model.
"""

import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from moesaic.core.errors import RequestError, unknown_name

MOST_TAGS, MOST_TAG_LENGTH = 32, 128
MOST_BIAS = 10_000.0
TEMPERATURES = (0.001, 1000.0)


class RoutingRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One thing done to the routes of some layers. Every field is checked on construction (RequestError).

    Attributes:
        layers: decoder layers' indices that it applies to; None for all with experts.
        top_k: experts a token goes to; None for as many as before.
        allow: experts that alone may be chosen; None for all.
        ban: experts that may not.
        bias: added to the router's logits, one number an expert, or by expert; at most 10000 either way.
        temperature: divides the logits, 0.001 to 1000; None for as before.
    """

    layers: list[int] | None = None
    top_k: int | None = None
    allow: list[int] | None = None
    ban: list[int] = []
    bias: list[float] | dict[int, float] = {}
    temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "allow", "ban"):
            value = getattr(self, name)
            if value is not None:
                msgspec.structs.force_setattr(self, name, _ids(name, value))
        if self.layers is not None and not self.layers:
            raise wrong_option("layers", "names no layer: leave it out for all")
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 1):
            raise wrong_option("top_k", f"must be a whole number of at least 1, got {self.top_k!r}")
        low, high = TEMPERATURES
        if self.temperature is not None and not (_is_number(self.temperature) and low <= self.temperature <= high):
            raise wrong_option("temperature", f"must be a number from {low} to {high:g}, got {self.temperature!r}")
        msgspec.structs.force_setattr(self, "bias", _bias(self.bias))

    @property
    def steers(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.top_k or self.allow is not None or self.ban or self.bias or self.temperature)

    def is_for(self, layer: int) -> bool:
        """Whether it applies to the decoder layer of this index."""
        return self.layers is None or layer in self.layers

    def bias_of(self, num_experts: int) -> list[float]:
        """The bias of each expert."""
        if isinstance(self.bias, list):
            return self.bias or [0.0] * num_experts
        return [self.bias.get(expert, 0.0) for expert in range(num_experts)]


class RoutingOptions(RoutingRule, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one request asks of its routes: `SamplingParams(routing=...)`, and `routing` in bodies of requests.

    Attributes:
        tags: what profiles and routing functions know the request by, such as "finance"; any text is allowed.
        profile: the routing profile used; "" for none, None for the one that the server has active.
    """

    tags: list[str] = []
    profile: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tags, list | tuple) or not all(isinstance(tag, str) for tag in self.tags):
            raise wrong_option("tags", f"must be a list of texts, got {self.tags!r}")
        if len(self.tags) > MOST_TAGS or not all(0 < len(tag) <= MOST_TAG_LENGTH for tag in self.tags):
            raise wrong_option("tags", f"must be at most {MOST_TAGS} texts of 1 to {MOST_TAG_LENGTH} characters")
        msgspec.structs.force_setattr(self, "tags", list(dict.fromkeys(self.tags)))
        if self.profile is not None and not isinstance(self.profile, str):
            raise wrong_option("profile", f"must be a profile's name, got {self.profile!r}")

    @classmethod
    def of(cls, value: Any) -> "RoutingOptions":
        """The options that a dict states (None is as good as nothing), or options themselves; raises RequestError."""
        if isinstance(value, RoutingOptions):
            return value
        if not isinstance(value, Mapping):
            raise RequestError(f"routing must be an object with routing options, got {value!r}", "routing")
        for name in value:
            if name not in cls.__struct_fields__:
                raise RequestError(unknown_name("routing option", str(name), cls.__struct_fields__), f"routing.{name}")
        return cls(**{name: given for name, given in value.items() if given is not None})

    @property
    def rule(self) -> RoutingRule:
        """All but tags and profile."""
        return RoutingRule(**{name: getattr(self, name) for name in RoutingRule.__struct_fields__})


def _ids(name: str, value: Any) -> list[int]:
    """Indices, each once, in order."""
    if not isinstance(value, list | tuple) or not all(_is_int(item) and item >= 0 for item in value):
        raise wrong_option(name, f"must be a list of whole numbers of at least 0, got {value!r}")
    return sorted(set(value))


def _bias(value: Any) -> list[float] | dict[int, float]:
    """Numbers, by expert or one each; JSON and TOML have only texts for keys."""
    if isinstance(value, Mapping):
        keys = [int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in value]
        if not all(_is_int(key) and key >= 0 for key in keys):
            raise wrong_option("bias", f"must have experts' numbers for keys, got {list(value)!r}")
        numbers = list(value.values())
    elif isinstance(value, list | tuple):
        keys, numbers = [], list(value)
    else:
        raise wrong_option("bias", f"must be a list of numbers, or an object of numbers by expert, got {value!r}")
    for number in numbers:
        if not _is_number(number) or abs(number) > MOST_BIAS:
            raise wrong_option("bias", f"must be finite numbers from {-MOST_BIAS:g} to {MOST_BIAS:g}, got {number!r}")
    if isinstance(value, Mapping) or not numbers:
        return {key: float(x) for key, x in zip(keys, numbers, strict=True)}
    return [float(x) for x in numbers]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # whole numbers may be too large for a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def wrong_option(name: str, what: str) -> RequestError:
    """An error about a routing option, to raise."""
    return RequestError(f"routing.{name} {what}", f"routing.{name}")

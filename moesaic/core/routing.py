"""What requests may ask of their routes, and what that comes to for a model: plain data, torch-free.

A `RoutingRule` changes how some layers choose experts. A request's own rule (its `RoutingOptions`) comes after those
of the profile for its tags; `resolve` puts them together and checks them against the model. In a layer, rules fold so:
of `top_k` and `temperature` the last one given counts; experts must be allowed by every `allow` and banned by no
`ban`; biases add up. The layer then chooses on `logits / temperature + bias`, where experts that are not allowed have
logits of -inf and are never chosen, in all else as the model would: scores, groups, correction, renormalisation and
scales. Where fewer experts are allowed than top_k, a token goes to these alone.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
            raise _wrong("layers", "names no layer: leave it out for all")
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 1):
            raise _wrong("top_k", f"must be a whole number of at least 1, got {self.top_k!r}")
        low, high = TEMPERATURES
        if self.temperature is not None and not (_is_number(self.temperature) and low <= self.temperature <= high):
            raise _wrong("temperature", f"must be a number from {low} to {high:g}, got {self.temperature!r}")
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
            raise _wrong("tags", f"must be a list of texts, got {self.tags!r}")
        if len(self.tags) > MOST_TAGS or not all(0 < len(tag) <= MOST_TAG_LENGTH for tag in self.tags):
            raise _wrong("tags", f"must be at most {MOST_TAGS} texts of 1 to {MOST_TAG_LENGTH} characters")
        msgspec.structs.force_setattr(self, "tags", list(dict.fromkeys(self.tags)))
        if self.profile is not None and not isinstance(self.profile, str):
            raise _wrong("profile", f"must be a profile's name, got {self.profile!r}")

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


class RequestRouting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request uses, from its beginning to its end.

    Attributes:
        tags: its own.
        rules: those of the profile for its tags, in order, then its own.
        profile, version: of the profile that gave rules; "" for none.
    """

    tags: list[str] = []
    rules: list[RoutingRule] = []
    profile: str = ""
    version: str = ""

    @property
    def key(self) -> str:
        """Equal for equal routes, and "" where these are the model's own; tags count where functions read them
        (`RoutesKey`)."""
        if not self.rules:
            return ""
        return msgspec.json.encode([self.rules, self.profile, self.version]).decode()


@dataclass
class RoutesKey:
    """What of a server and a request decides over routes, and so what keys of cached prefixes must tell apart.

    Attributes:
        server: of whatever changes the routes of all: the server's top-k.
        functions: identities of the routing functions, in order.
        reads_tags: a request's tags may change its routes, even where no rule says so.
    """

    server: str = ""
    functions: str = ""
    reads_tags: bool = False

    def of(self, routing: RequestRouting | None) -> str:
        """The part of a request's keys; "" for the model's own routes."""
        own = routing.key if routing is not None else ""
        tags = sorted(routing.tags) if routing is not None and self.reads_tags else []
        if not (self.server or self.functions or own or tags):
            return ""
        return msgspec.json.encode([self.server, self.functions, own, tags]).decode()


class LayerShape(msgspec.Struct, frozen=True):
    """A layer of experts: its decoder layer's index, experts that its router chooses among, and how many of them."""

    index: int
    num_experts: int
    top_k: int


class MoeShape(msgspec.Struct, frozen=True):
    """The layers of experts of a model.

    Attributes:
        fixed: why routes cannot be changed; "" where they can.
    """

    layers: list[LayerShape]
    fixed: str = ""


@dataclass(frozen=True)
class LayerRouting:
    """What rules come to in one layer.

    Attributes:
        top_k: experts a token goes to at most.
        banned: those that may not be chosen, in order.
        bias: of each expert, or empty for none.
        temperature: divides the logits.
    """

    top_k: int
    banned: tuple[int, ...] = ()
    bias: tuple[float, ...] = ()
    temperature: float = 1.0


def fold(rules: Sequence[RoutingRule], layer: LayerShape) -> LayerRouting:
    """What `rules`, in order, come to in a layer."""
    top_k, temperature = layer.top_k, 1.0
    bias: list[float] = []
    for rule in rules:
        if not rule.is_for(layer.index):
            continue
        top_k = rule.top_k if rule.top_k is not None else top_k
        temperature = rule.temperature if rule.temperature is not None else temperature
        if rule.bias:
            own = rule.bias_of(layer.num_experts)
            bias = [a + b for a, b in zip(bias, own, strict=True)] if bias else own
    return LayerRouting(top_k, tuple(banned_in(rules, layer)), tuple(bias) if any(bias) else (), temperature)


def banned_in(rules: Sequence[RoutingRule], layer: LayerShape) -> list[int]:
    """The experts that `rules` leave out in a layer."""
    banned: set[int] = set()
    for rule in rules:
        if rule.is_for(layer.index):
            banned.update(rule.ban)
            if rule.allow is not None:
                banned.update(set(range(layer.num_experts)).difference(rule.allow))
    return sorted(banned)


def check_rule(rule: RoutingRule, shape: MoeShape) -> None:
    """Raise RequestError unless a model of this shape has the layers and experts that a rule names."""
    known = {layer.index for layer in shape.layers}
    for index in rule.layers or ():
        if index not in known:
            raise _wrong("layers", f"names layer {index}, and the layers with experts are {_spans(sorted(known))}")
    for layer in shape.layers:
        if rule.is_for(layer.index):
            _check_in(layer, rule)


def _check_in(layer: LayerShape, rule: RoutingRule) -> None:
    count, where = layer.num_experts, f"layer {layer.index} has experts 0 to {layer.num_experts - 1}"
    if rule.top_k is not None and rule.top_k > count:
        raise _wrong("top_k", f"is {rule.top_k}, and layer {layer.index} has {count} experts")
    for name, ids in (("allow", rule.allow or ()), ("ban", rule.ban), ("bias", rule.bias)):
        if name == "bias" and isinstance(ids, list):
            if ids and len(ids) != count:
                raise _wrong("bias", f"has {len(ids)} numbers, and layer {layer.index} has {count} experts")
        elif beyond := [expert for expert in ids if expert >= count]:
            raise _wrong(name, f"names expert {beyond[0]}, and {where}")


def resolve(
    options: RoutingOptions | None,
    shape: MoeShape | None,
    profile_rules: Sequence[RoutingRule] = (),
    profile: str = "",
    version: str = "",
) -> RequestRouting | None:
    """What a request uses; None where it has neither tags nor rules.

    Args:
        shape: the model's; None for one without experts.
        profile_rules: of the profile `profile` in its `version`, for the request's tags.

    Raises:
        RequestError: the model cannot do it: an expert or layer that it does not have, more experts a token than there
            are, none left to choose, or routes that cannot be changed.
    """
    options = options or RoutingOptions()
    own = [options.rule] if options.rule.steers else []
    rules = [*profile_rules, *own]
    if not rules:
        return RequestRouting(tags=options.tags) if options.tags else None
    if shape is None:
        raise RequestError("routing has options for experts, and this model has none: leave them out", "routing")
    if shape.fixed:
        raise RequestError(f"routing cannot be changed: {shape.fixed}", "routing")
    for rule in own:
        check_rule(rule, shape)
    for layer in shape.layers:
        if len(banned_in(rules, layer)) == layer.num_experts:
            name = "allow" if options.allow is not None and not options.ban else "ban"
            raise _wrong(name, f"leaves none of the {layer.num_experts} experts of layer {layer.index} to choose")
    named = (profile, version) if profile_rules else ("", "")
    return RequestRouting(tags=options.tags, rules=rules, profile=named[0], version=named[1])


def _ids(name: str, value: Any) -> list[int]:
    """Indices, each once, in order."""
    if not isinstance(value, list | tuple) or not all(_is_int(item) and item >= 0 for item in value):
        raise _wrong(name, f"must be a list of whole numbers of at least 0, got {value!r}")
    return sorted(set(value))


def _bias(value: Any) -> list[float] | dict[int, float]:
    """Numbers, by expert or one each; JSON and TOML have only texts for keys."""
    if isinstance(value, Mapping):
        keys = [int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in value]
        if not all(_is_int(key) and key >= 0 for key in keys):
            raise _wrong("bias", f"must have experts' numbers for keys, got {list(value)!r}")
        numbers = list(value.values())
    elif isinstance(value, list | tuple):
        keys, numbers = [], list(value)
    else:
        raise _wrong("bias", f"must be a list of numbers, or an object of numbers by expert, got {value!r}")
    for number in numbers:
        if not _is_number(number) or abs(number) > MOST_BIAS:
            raise _wrong("bias", f"must be finite numbers from {-MOST_BIAS:g} to {MOST_BIAS:g}, got {number!r}")
    if isinstance(value, Mapping) or not numbers:
        return {key: float(x) for key, x in zip(keys, numbers, strict=True)}
    return [float(x) for x in numbers]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # whole numbers may be too large for a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _wrong(name: str, what: str) -> RequestError:
    return RequestError(f"routing.{name} {what}", f"routing.{name}")


def _spans(numbers: list[int]) -> str:
    """`0 to 5, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts)

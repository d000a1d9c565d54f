"""What the routing options of requests come to for a model: plain data, torch-free.

A request's own rule (its `RoutingOptions`) comes after those of the profile for its tags; `resolve` puts them together
and checks them against the model. In a layer, rules fold so: of `top_k` and `temperature` the last one given counts;
experts must be allowed by every `allow` and banned by no `ban`; biases add up. The layer then chooses on
`logits / temperature + bias`, where experts that are not allowed have logits of -inf and are never chosen, in all else
as the model would: scores, groups, correction, renormalisation and scales. Where fewer experts are allowed than top_k,
a token goes to these alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from moesaic.core.errors import RequestError
from moesaic.core.routing_options import RoutingOptions, RoutingRule, wrong_option


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
            raise wrong_option(
                "layers", f"names layer {index}, and the layers with experts are {_spans(sorted(known))}"
            )
    for layer in shape.layers:
        if rule.is_for(layer.index):
            _check_in(layer, rule)


def _check_in(layer: LayerShape, rule: RoutingRule) -> None:
    count, where = layer.num_experts, f"layer {layer.index} has experts 0 to {layer.num_experts - 1}"
    if rule.top_k is not None and rule.top_k > count:
        raise wrong_option("top_k", f"is {rule.top_k}, and layer {layer.index} has {count} experts")
    for name, ids in (("allow", rule.allow or ()), ("ban", rule.ban), ("bias", rule.bias)):
        if name == "bias" and isinstance(ids, list):
            if ids and len(ids) != count:
                raise wrong_option("bias", f"has {len(ids)} numbers, and layer {layer.index} has {count} experts")
        elif beyond := [expert for expert in ids if expert >= count]:
            raise wrong_option(name, f"names expert {beyond[0]}, and {where}")


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
            raise wrong_option(name, f"leaves none of the {layer.num_experts} experts of layer {layer.index} to choose")
    named = (profile, version) if profile_rules else ("", "")
    return RequestRouting(tags=options.tags, rules=rules, profile=named[0], version=named[1])


def _spans(numbers: list[int]) -> str:
    """`0 to 5, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts)

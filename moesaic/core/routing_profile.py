"""A routing profile: a small TOML or JSON file that says how requests are routed, by tag and layer. Torch-free.

    name = "frugal"
    description = "one expert a token in the first two layers, and sums without the experts of prose"

    [[rules]]                       # for every request
    layers = [0, 1]
    top_k = 1

    [[rules]]                       # for requests with one of these tags
    tags = ["sums"]
    ban = [4, 7]
    bias = {2 = 1.5}

A rule's other keys are those of `RoutingRule`. A request has the rules of its tags in the order of the file.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from moesaic.core.errors import ConfigError, RequestError, unknown_name
from moesaic.core.files import parse_json, read_file
from moesaic.core.routing import MoeShape, check_rule, fold
from moesaic.core.routing_options import MOST_TAG_LENGTH, MOST_TAGS, RoutingRule

ANY = "*"  # the tag of every request
SUFFIXES = (".toml", ".json")
MOST_BYTES = 1 << 20
MOST_RULES = 1024
MOST_DESCRIPTION = 4000  # letters
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
KEYS = ("name", "description", "rules")
RULE_KEYS = ("tags", *RoutingRule.__struct_fields__)


@dataclass(frozen=True)
class ProfileRule:
    """A rule, and the tags of the requests that it is for; "*" stands for every request."""

    tags: tuple[str, ...]
    rule: RoutingRule


@dataclass(frozen=True)
class RoutingProfile:
    """A profile as it was read.

    Attributes:
        version: equal for equal rules: the beginning of their SHA-256.
    """

    name: str
    description: str
    rules: tuple[ProfileRule, ...]
    version: str

    @property
    def tags(self) -> list[str]:
        """Every tag that a rule is for, but "*"."""
        return list(dict.fromkeys(tag for rule in self.rules for tag in rule.tags if tag != ANY))

    def rules_for(self, tags: Sequence[str]) -> list[RoutingRule]:
        """The rules of a request with these tags."""
        own = {ANY, *tags}
        return [rule.rule for rule in self.rules if own.intersection(rule.tags)]

    def check(self, shape: MoeShape | None) -> None:
        """Raise ConfigError unless a model of this shape can be routed so: it has every layer and expert that is named,
        and each tag by itself leaves experts to choose."""
        if shape is None:
            raise ConfigError(f"routing profile {self.name!r} is for a model with experts, and this one has none")
        if shape.fixed:
            raise ConfigError(f"routing profile {self.name!r} cannot be used: {shape.fixed}")
        for number, rule in enumerate(self.rules, 1):
            try:
                check_rule(rule.rule, shape)
            except RequestError as error:
                raise ConfigError(
                    f"routing profile {self.name!r} does not fit the model: {_of_rule(number, error)}"
                ) from error
        for tag in (ANY, *self.tags):
            for layer in shape.layers:
                if len(fold(self.rules_for([tag]), layer).banned) == layer.num_experts:
                    whom = "every request" if tag == ANY else f"requests with the tag {tag!r}"
                    raise ConfigError(
                        f"routing profile {self.name!r} leaves {whom} none of the {layer.num_experts} experts of "
                        f"layer {layer.index} to choose"
                    )

    def plain(self) -> dict[str, Any]:
        """The profile as its file states it."""
        rules = []
        for rule in self.rules:
            tags = {} if rule.tags == (ANY,) else {"tags": list(rule.tags)}
            rules.append(tags | msgspec.to_builtins(rule.rule))
        return {"name": self.name, "description": self.description, "rules": rules}


def read_profile(path: str | os.PathLike[str]) -> RoutingProfile:
    """The profile in a file.

    Raises:
        ConfigError: it cannot be read, is too large, is no TOML or JSON (by its name), or says what no profile may.
    """
    path = Path(path)
    try:
        data = read_file(path, MOST_BYTES)
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"{path}: a routing profile is a file called *.toml or *.json")
        value = parse_json(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no TOML: it is nested without end") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no {path.suffix[1:].upper()}: {error}") from error
    try:
        return make_profile(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def make_profile(value: Any) -> RoutingProfile:
    """The profile that plain data states; raises ConfigError, which names the key."""
    _known(value, KEYS, "a routing profile")
    name, description, rules = value.get("name"), value.get("description", ""), value.get("rules", [])
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"name must be 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit; "
            f"got {name!r}"
        )
    if not isinstance(description, str) or len(description) > MOST_DESCRIPTION:
        raise ConfigError(f"description must be a text of at most {MOST_DESCRIPTION} letters")
    if not isinstance(rules, list) or len(rules) > MOST_RULES:
        raise ConfigError(f"rules must be a list of at most {MOST_RULES} tables")
    made = tuple(_rule(number, rule) for number, rule in enumerate(rules, 1))
    text = msgspec.json.encode([(rule.tags, rule.rule) for rule in made])
    return RoutingProfile(name, description, made, hashlib.sha256(text).hexdigest()[:12])


def _rule(number: int, value: Any) -> ProfileRule:
    _known(value, RULE_KEYS, f"rule {number}")
    tags = value.get("tags", [ANY])
    fits = isinstance(tags, list) and all(isinstance(tag, str) and 0 < len(tag) <= MOST_TAG_LENGTH for tag in tags)
    if not fits or not 0 < len(tags) <= MOST_TAGS:
        raise ConfigError(
            f"rule {number}: tags must be 1 to {MOST_TAGS} texts of 1 to {MOST_TAG_LENGTH} letters, got {tags!r}"
        )
    try:
        rule = RoutingRule(**{key: given for key, given in value.items() if key != "tags"})
    except RequestError as error:
        raise ConfigError(_of_rule(number, error)) from error
    if not rule.steers:
        raise ConfigError(f"rule {number} does nothing: give it one of {', '.join(RULE_KEYS[2:])}")
    return ProfileRule(tuple(dict.fromkeys(tags)), rule)


def _of_rule(number: int, error: RequestError) -> str:
    return f"rule {number}: {str(error).removeprefix('routing.')}"


def _known(value: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a table of {', '.join(keys)}, got {type(value).__name__}")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{what}: {unknown_name('key', str(key), keys)}")


def to_toml(profile: RoutingProfile) -> str:
    """The text of a TOML file that reads as `profile`."""
    plain = profile.plain()
    lines = [f"{key} = {_toml(plain[key])}" for key in ("name", "description")]
    for rule in plain["rules"]:
        lines += ["", "[[rules]]", *(f"{key} = {_toml(given)}" for key, given in rule.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Numbers, texts, lists, and tables by expert."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

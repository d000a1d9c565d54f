"""Which known architectures a checkpoint is built like: by names, shapes, and the keys of its config. Torch-free."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.adapt.compare import Comparison, Match, compare, wanted_by
from moesaic.adapt.lenient import LenientReader, Reading
from moesaic.adapt.measured import measured
from moesaic.adapt.misfits import flat
from moesaic.adapt.names import Group
from moesaic.adapt.survey import Survey
from moesaic.models.aliases import field_of
from moesaic.models.config_reader import METADATA
from moesaic.models.plausible import COUNTED, too_large
from moesaic.models.registry import Architecture, ModelRegistry
from moesaic.weights.rules import AnyRule, Rule, numberless

NAMES_ALONE = 0.8  # the most that names tell without shapes
TENSORS = 0.75  # share of the score that names and shapes make, the rest is the config's


@dataclass(frozen=True)
class Likeness:
    """How alike a checkpoint and a known architecture are.

    Attributes:
        score: from 0 to 1; `tensors` and `config` are its parts.
        matches: what its tensors would be.
        unexplained: patterns of the checkpoint that are nothing there.
        unfilled: what the architecture wants and the checkpoint has not, in words.
        misshaped: patterns whose name agrees and whose shape does not.
        unknown_keys, missing_keys, refused: of the config: not understood, required and absent, values not served.
        renamed: keys that it would find under another name -> that name.
    """

    architecture: str
    score: float
    tensors: float
    config: float
    matches: tuple[Match, ...]
    unexplained: tuple[str, ...]
    unfilled: tuple[str, ...]
    misshaped: tuple[str, ...]
    unknown_keys: tuple[str, ...]
    missing_keys: tuple[str, ...]
    refused: tuple[str, ...]
    renamed: Mapping[str, str]

    @property
    def differs(self) -> list[str]:
        """What differs, in words."""
        said = (
            ("not there", self.unexplained),
            ("of another shape there", self.misshaped),
            ("wanted there", self.unfilled),
            ("keys not known there", self.unknown_keys),
            ("keys wanted there", self.missing_keys),
            ("not served there", self.refused),
            ("called otherwise there", tuple(f"{theirs} ({ours})" for ours, theirs in self.renamed.items())),
        )
        return [f"{kind}: {', '.join(what)}" for kind, what in said if what]


def nearest_architectures(found: Survey, most: int = 5) -> list[Likeness]:
    """The known architectures that a checkpoint is built like, best first."""
    groups = [group for group in found.weight_groups if len(group)]
    config = {k: v for k, v in (found.config or {}).items() if k != "quantization_config"}
    facts = measured(groups, (key.rpartition(".")[2] for key, _ in flat(config)))
    if too_large(facts.get("num_hidden_layers", 1), facts.get("num_experts", 1), COUNTED):
        return []
    # The language model's keys may stand in an object of their own, whatever wraps them.
    inner = {} if _is_model(config) else {k: v for k, v in config.items() if isinstance(v, Mapping) and _is_model(v)}
    ranked = []
    for architecture in _described_by_specs():
        likenesses = [_likeness(architecture, groups, c, facts) for c in (config, *inner.values())]
        ranked += sorted((like for like in likenesses if like is not None), key=lambda like: -like.score)[:1]
    return sorted(ranked, key=lambda like: -like.score)[:most]


def _is_model(config: Mapping[str, Any]) -> bool:
    return any(field_of(key) == "hidden_size" for key in config)


def _described_by_specs() -> Iterator[Architecture]:
    """Each architecture that a spec describes, once where it goes by several names."""
    seen = set()
    for name in ModelRegistry.get_supported_archs():
        architecture = ModelRegistry.resolve({"architectures": [name]})
        if architecture.spec is not None and architecture.spec not in seen:
            seen.add(architecture.spec)
            yield architecture


def _likeness(
    architecture: Architecture, groups: Sequence[Group], config: Mapping[str, Any], facts: Mapping[str, Any]
) -> Likeness | None:
    reading = Reading(facts)
    reader = LenientReader(config, reading)
    assert architecture.spec is not None
    try:
        spec = architecture.spec(reader)
        found = compare(groups, wanted_by(architecture, spec))
        rules = architecture.rules(spec)
    except Exception:  # made-up values need not make a model
        found, rules = Comparison(0.0, [], [g.pattern for g in groups], [], []), _rules_without_sizes(architecture)
    keys = sum(1 for key in config if key not in METADATA)
    unknown = tuple(reader.not_understood())
    against = len(unknown) + len(reading.missing) + len(reading.refused)
    stated = max(0.0, 1 - against / max(1, keys + len(reading.missing)))
    tensors = max(found.score, NAMES_ALONE * _named_so(groups, rules))
    if not tensors:
        return None
    return Likeness(
        architecture.name,
        round(TENSORS * tensors + (1 - TENSORS) * stated, 3) if keys else round(tensors, 3),
        round(tensors, 3),
        round(stated, 3),
        tuple(found.matches),
        tuple(found.unexplained),
        tuple(found.unfilled),
        tuple(found.misshaped),
        unknown,
        tuple(dict.fromkeys(reading.missing)),
        tuple(dict.fromkeys(reading.refused)),
        dict(reading.renamed),
    )


def _rules_without_sizes(architecture: Architecture) -> list[AnyRule]:
    """The rules, where they do not depend on what the model computes."""
    try:
        return architecture.rules(None)  # type: ignore[arg-type]
    except (AttributeError, TypeError):  # they ask the spec for sizes; any other error is the architecture's own
        return []


def _named_so(groups: Sequence[Group], rules: Sequence[AnyRule]) -> float:
    """The share of patterns whose names are some rule's, whatever their shapes."""
    sources = {numberless(re.sub(r"\{[le]\}", "0", rule.source)) for rule in rules if isinstance(rule, Rule)}
    plain = {source for source in sources if "{" not in source}
    open_ones = [re.compile(_words(source)) for source in sources - plain]
    known = 0
    for group in groups:
        name = numberless(next(iter(group.names.values())))
        known += name in plain or any(pattern.fullmatch(name) for pattern in open_ones)
    return known / len(groups) if groups else 0.0


def _words(source: str) -> str:
    """The regular expression of a name with variables that stand for words."""
    return "[a-z_]+".join(map(re.escape, re.split(r"\{\w+\}", source)))

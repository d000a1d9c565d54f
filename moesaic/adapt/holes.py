"""Experts that a checkpoint lacks, told from its names alone: what every layer has and some do not. Torch-free."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moesaic.adapt.misfits import Misfit
from moesaic.adapt.names import Group, listed, ranges


@dataclass(frozen=True)
class ExpertNames:
    """The tensors of experts that share a pattern up to the expert's number.

    Attributes:
        parent: the pattern up to that number.
        parts: what follows it -> (layer, expert) of each tensor; layer -1 where names have none.
        layers: layers that have experts.
        experts: the numbers that there are in any of them.
    """

    parent: str
    parts: Mapping[str, frozenset[tuple[int, int]]]
    layers: tuple[int, ...]
    experts: tuple[int, ...]


def expert_names(groups: Iterable[Group]) -> list[ExpertNames]:
    """Experts by the patterns of their names."""
    found: dict[str, dict[str, frozenset[tuple[int, int]]]] = defaultdict(dict)
    for group in groups:
        if "e" not in group.variables:
            continue
        places = [group.variables.index(v) if v in group.variables else -1 for v in "le"]
        keys = frozenset((n[places[0]] if places[0] >= 0 else -1, n[places[1]]) for n in group.names)
        found[group.parent][group.pattern.removeprefix(group.parent).strip("._")] = keys
    result = []
    for parent, parts in found.items():
        everywhere = frozenset().union(*parts.values())
        layers, experts = sorted({la for la, _ in everywhere}), sorted({e for _, e in everywhere})
        result.append(ExpertNames(parent, parts, tuple(layers), tuple(experts)))
    return result


def holes(groups: Iterable[Group], num_experts: int | None = None) -> list[Misfit]:
    """Experts, and parts of them, that other layers' names say should be there.

    Args:
        num_experts: as the config states it; None for the highest number that there is, plus one.
    """
    found = []
    for names in expert_names(groups):
        count = max(num_experts or 0, names.experts[-1] + 1)
        everywhere = frozenset().union(*names.parts.values())
        same: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = defaultdict(list)
        for layer in names.layers:
            absent = tuple(e for e in range(count) if (layer, e) not in everywhere)
            if absent:
                same[absent, ()].append(layer)
            for expert in set(range(count)) - set(absent):
                lacks = tuple(sorted(part for part, keys in names.parts.items() if (layer, expert) not in keys))
                if lacks and any((layer, e) in names.parts[part] for part in lacks for e in names.experts):
                    same[(expert,), lacks].append(layer)
        for (experts, parts), layers in same.items():
            where = f"layer{'s' * (len(layers) > 1)} {ranges(layers)}: " if layers != [-1] else ""
            which = f"expert{'s' * (len(experts) > 1)} {ranges(experts) if len(experts) > 6 else listed(experts)}"
            be = "are" if len(parts or experts) > 1 else "is"
            what = f"{listed(parts)} of {which} {be} missing" if parts else f"{which} of 0..{count - 1} {be} missing"
            total = len(layers) * len(experts) * len(parts or names.parts)
            found.append(Misfit("missing", where + what, total, tuple(layers), experts, names.parent))
    return found

"""Why a checkpoint does not fill a model, in words that name layers and experts. Torch-free.

`weights.plan` finds every miss; here misses that have one cause are told as one.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.adapt.names import Group, group_names, listed, ranges
from moesaic.core.errors import nearest
from moesaic.models.spec import ExpertAttentionSpec, ExpertPagedAttentionSpec, ModelSpec
from moesaic.weights.plan import Accounting
from moesaic.weights.rules import Shape, numberless
from moesaic.weights.tensors import FLOATS, TensorInfo

_CANONICAL = re.compile(r"layers\.(\d+)\.(?:(.*?)experts\.(\d+)\.)?(.*)")


@dataclass(frozen=True)
class Misfit:
    """Something that does not fit.

    Attributes:
        kind: "missing", "superfluous", "misshaped", "twice" or "dtype".
        what: in words, with layers and experts.
        tensors: how many it is about.
        layers, experts: where; () where it is not about such.
        example: the name of a tensor.
    """

    kind: str
    what: str
    tensors: int
    layers: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    example: str = ""


def misfits(
    accounts: Accounting, spec: ModelSpec, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> list[Misfit]:
    """All that does not add up, most telling first."""
    wrong_dtype = _dtypes(accounts, tensors)
    return [
        *_missing(accounts, spec),
        *_superfluous(accounts, spec, tensors),
        *_misshaped(accounts, tensors, config),
        *_twice(accounts),
        *wrong_dtype,
    ]


def _missing(accounts: Accounting, spec: ModelSpec) -> Iterator[Misfit]:
    of_experts: dict[tuple[int, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    by_layer: Counter[int] = Counter()
    rest: dict[str, list[str]] = defaultdict(list)
    filled = {copy.target for copy in accounts.plan.copies}
    alive = {int(found[1]) for name in filled if (found := _CANONICAL.fullmatch(name))}
    for name in accounts.missing:
        found = _CANONICAL.fullmatch(name)
        if found and int(found[1]) not in alive:
            by_layer[int(found[1])] += 1
        elif found and found[3] is not None:
            of_experts[int(found[1]), found[2]][int(found[3])].append(name)
        else:
            rest[numberless(name)].append(name)
    if by_layer:
        yield Misfit(
            "missing",
            f"layer{_s(by_layer)} {ranges(by_layer)} of 0..{len(spec.layers) - 1} {_are(by_layer)} missing altogether: "
            f"the config says {len(spec.layers)} layers",
            sum(by_layer.values()),
            tuple(sorted(by_layer)),
        )
    yield from _missing_experts(accounts, spec, of_experts, filled)
    for names in rest.values():
        yield _missing_like(accounts, names)


def _missing_experts(
    accounts: Accounting,
    spec: ModelSpec,
    lacking: Mapping[tuple[int, str], Mapping[int, list[str]]],
    filled: set[str],
) -> Iterator[Misfit]:
    """Experts of which all, or some, tensors are missing; layers that lack the same are told of at once."""
    same: dict[tuple[str, tuple[int, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for (layer, block), experts in lacking.items():
        by_parts: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for expert, names in experts.items():
            whole = not any(name in filled for name in _siblings(names[0], filled))
            parts = () if whole else tuple(sorted(_CANONICAL.fullmatch(n)[4].split(".")[0] for n in names))  # type: ignore[index]
            by_parts[parts].append(expert)
        for parts, which in by_parts.items():
            same[block, tuple(sorted(which)), parts].append(layer)
    for (block, experts_, parts), layers in same.items():
        first = lacking[layers[0], block][experts_[0]][0]
        count = _num_experts(spec, layers[0], block)
        where = f"layer{_s(layers)} {ranges(layers)}"
        sources = accounts.missing[first]
        example = sources[0] if sources else first
        if parts:
            what = f"{listed(parts)} of expert{_s(experts_)} {listed(experts_)} {_are(parts)} missing"
        elif len(experts_) == count:
            what = f"all {count} experts are missing: no tensor has such a name as {example}"
        else:
            shown = ranges(experts_) if len(experts_) > 6 else listed(experts_)
            what = f"expert{_s(experts_)} {shown} of 0..{count - 1} {_are(experts_)} missing"
        total = sum(len(lacking[layer, block][e]) for layer in layers for e in experts_)
        yield Misfit("missing", f"{where}: {what}", total, tuple(layers), experts_, example)


def _siblings(name: str, filled: set[str]) -> Iterable[str]:
    """What else one expert may have."""
    head = name[: name.index("experts.")] + "experts." + name.split("experts.")[1].split(".")[0]
    parts = ("gate", "up", "down", "q", "k", "v", "o")
    return [f"{head}.{part}.{kind}" for part in parts for kind in ("weight", "bias")]


def _num_experts(spec: ModelSpec, layer: int, block: str) -> int:
    attention, moe = spec.layers[layer].attention, spec.layers[layer].moe
    if block.startswith("attention") and isinstance(attention, ExpertAttentionSpec | ExpertPagedAttentionSpec):
        return attention.num_experts
    return moe.num_experts if moe is not None else 0


def _missing_like(accounts: Accounting, names: list[str]) -> Misfit:
    """Parameters of one kind, in some layers."""
    layers = sorted({int(found[1]) for name in names if (found := _CANONICAL.fullmatch(name))})
    sources = accounts.missing[names[0]]
    near = nearest(sources[0], accounts.superfluous) if sources else []
    hint = f"; the nearest that is there without use: {near[0]}" if near else ""
    of = f" in layer{_s(layers)} {ranges(layers)}" if layers else ""
    what = f"{names[0]} has no tensor{of}: expected as {' or '.join(sources) or 'no rule says where from'}{hint}"
    return Misfit("missing", what, len(names), tuple(layers), (), sources[0] if sources else names[0])


def _superfluous(accounts: Accounting, spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> Iterator[Misfit]:
    beyond: Counter[int] = Counter()
    experts: dict[tuple[int, ...], int] = {}
    for group in group_names({name: tensors[name] for name in accounts.superfluous}):
        over = [layer for layer in group.layers if layer >= len(spec.layers)]
        used = {copy.source for copy in accounts.plan.copies if numberless(copy.source) == numberless(_any(group))}
        if over and len(over) == len(group.layers):
            for layer in over:
                beyond[layer] += sum(1 for numbers in group.names if numbers[group.variables.index("l")] == layer)
        elif group.experts and used and min(group.experts) > 0:
            experts[group.experts] = experts.get(group.experts, 0) + len(group)
        else:
            yield _superfluous_like(accounts, group)
    if beyond:
        yield Misfit(
            "superfluous",
            f"layer{_s(beyond)} {ranges(beyond)}: the config says {len(spec.layers)} layers, so their "
            f"{sum(beyond.values())} tensors have no use",
            sum(beyond.values()),
            tuple(sorted(beyond)),
        )
    for which, count in experts.items():
        most = max((layer.moe.num_experts for layer in spec.layers if layer.moe is not None), default=0)
        yield Misfit(
            "superfluous",
            f"expert{_s(which)} {ranges(which)}: the config says {most} experts, so their {count} tensors have no use",
            count,
            (),
            which,
        )


def _superfluous_like(accounts: Accounting, group: Group) -> Misfit:
    wanted = [source for sources in accounts.missing.values() for source in sources]
    near = nearest(numberless(_any(group)), {numberless(name) for name in wanted})
    hint = f"; the nearest that is expected: {near[0]}" if near else ""
    what = f"{group.pattern} {list(group.shape)} has no use{_of(group)}{hint}"
    return Misfit("superfluous", what, len(group), group.layers, group.experts, _any(group))


def _misshaped(accounts: Accounting, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Iterator[Misfit]:
    cause = _one_size(accounts.misshaped.values(), config)
    if cause:
        yield Misfit("misshaped", cause, len(accounts.misshaped))
    by_change: dict[tuple[Shape, Shape], dict[str, TensorInfo]] = defaultdict(dict)
    for name, change in accounts.misshaped.items():
        by_change[change][name] = tensors[name]
    for (stored, expected), names in by_change.items():
        for group in group_names(names):
            turned = stored[-2:] == expected[-2:][::-1] and stored[:-2] == expected[:-2] and len(stored) > 1
            hint = ": it is transposed" if turned else ""
            what = f"{group.pattern} is {list(stored)}, the config asks for {list(expected)}{hint}{_of(group)}"
            yield Misfit("misshaped", what, len(group), group.layers, group.experts, _any(group))


def _one_size(changes: Iterable[tuple[Shape, Shape]], config: Mapping[str, Any]) -> str:
    """The one size that explains every wrong shape, with the config's keys that say it; "" where there is none."""
    pairs: Counter[tuple[int, int]] = Counter()
    total = 0
    for stored, expected in changes:
        total += 1
        if len(stored) == len(expected):
            pairs.update({(s, e) for s, e in zip(stored, expected, strict=True) if s != e})
    alone = [pair for pair, count in pairs.items() if count == total]
    if len(pairs) != 1 or not alone:
        return ""
    (stored_size, expected_size) = alone[0]
    keys = [key for key, value in flat(config) if value == expected_size and not isinstance(value, bool)]
    says = f" ({listed(keys, 4)} in config.json)" if keys else ""
    return f"where the config's sizes ask for {expected_size}{says}, all wrong tensors have {stored_size}"


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a config and the objects in it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _twice(accounts: Accounting) -> Iterator[Misfit]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in accounts.twice:
        kinds[numberless(name)].append(name)
    for names in kinds.values():
        what = f"{names[0]} would be filled from {' and from '.join(accounts.twice[names[0]])}"
        yield Misfit("twice", what, len(names), example=names[0])


def _dtypes(accounts: Accounting, tensors: Mapping[str, TensorInfo]) -> Iterator[Misfit]:
    used = {copy.source for copy in (*accounts.plan.copies, *accounts.plan.checks)}
    wrong = {name: tensors[name] for name in tensors if name in used and tensors[name].dtype not in FLOATS}
    for group in group_names(wrong):
        what = f"{group.pattern} is {listed(sorted(group.dtypes))}, no parameter is filled from that{_of(group)}"
        yield Misfit("dtype", what, len(group), group.layers, group.experts, _any(group))


def _any(group: Group) -> str:
    return next(iter(group.names.values()))


def _of(group: Group) -> str:
    """` (layer 2, expert 5)`, for a group with a few of them; ` (layers 0..4, experts 0..15; 80 tensors)` for one with
    many."""
    parts = [
        f"{word}{_s(values)} {ranges(values)}"
        for word, values in (("layer", group.layers), ("expert", group.experts))
        if values
    ]
    more = f"; {len(group)} tensors" if len(group) > 1 else ""
    return f" ({', '.join(parts)}{more})" if parts else ""


def _s(things: Iterable[object]) -> str:
    return "s" if len(list(things)) != 1 else ""


def _are(things: Iterable[object]) -> str:
    return "are" if len(list(things)) != 1 else "is"

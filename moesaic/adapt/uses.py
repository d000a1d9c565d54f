"""What becomes of each tensor of a checkpoint, told by patterns of names; and the parts that they make. Torch-free."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from moesaic.adapt.compare import Match
from moesaic.adapt.names import Group, ranges
from moesaic.adapt.parts import PARTS, guessed_part, named_together, part_of
from moesaic.adapt.survey import Survey
from moesaic.weights.plan import Accounting
from moesaic.weights.rules import numberless

_OF_CODES = re.compile(r"[._](blocks|scales?|packed|shape|scale_inv|zero_point|qweight|qzeros|g_idx|weight_\w+)$")


@dataclass(frozen=True)
class Use:
    """Tensors of one pattern, and what becomes of them.

    Attributes:
        pattern: their names, `{l}` for the layer, `{e}` for the expert.
        count, shape, dtypes, nbytes: how many, the shape of most, and dtypes (of codes: their kind).
        layers, experts: the numbers in the names, as ranges.
        part: of the model.
        becomes: what they are in it, in words; "" where nobody knows.
        parameters: canonical, `#` for numbers.
        state: "used", "checked" (must equal a parameter), "ignored", "unused", or, where no spec says it, "guessed"
            or "unknown".
    """

    pattern: str
    count: int
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    layers: str
    experts: str
    part: str
    becomes: str
    parameters: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class Part:
    """A part of the model: elements and bytes as they are stored."""

    name: str
    parameters: int
    nbytes: int


def uses_of(found: Survey, accounts: Accounting | None, guessed: Iterable[Match] = ()) -> tuple[Use, ...]:
    """What becomes of each group of names; as is `guessed`, where no architecture says it."""
    targets: dict[str, list[str]] = defaultdict(list)
    state: dict[str, str] = {}
    if accounts is not None:
        for copy in accounts.plan.copies:
            targets[copy.source].append(copy.target)
        state.update(dict.fromkeys(accounts.superfluous, "unused"))
        state.update(dict.fromkeys(accounts.ignored, "ignored"))
        for check in accounts.plan.checks:
            targets[check.source].append(check.target)
            state[check.source] = "checked"
    uses = [_use(group, targets, state, accounts is not None) for group in found.weight_groups]
    guesses = {match.pattern: match for match in guessed}
    kinds = {group.pattern: found.formats.get(next(iter(group.names.values()))) for group in found.weight_groups}
    for i, use in enumerate(uses):
        match, format = guesses.get(use.pattern), kinds[use.pattern]
        if match is not None and use.state == "unknown":
            use = _guessed(use, match)
        uses[i] = use if format is None else replace(use, dtypes=(format.kind,))
    return tuple(uses)


def _guessed(use: Use, match: Match) -> Use:
    part = part_of(match.parameters[0]) if match.parameters else use.part
    return replace(use, state="guessed", becomes=match.becomes, parameters=match.parameters, part=part)


def _use(group: Group, targets: Mapping[str, list[str]], state: Mapping[str, str], known: bool) -> Use:
    names = list(group.names.values())
    first = next((name for name in names if name in targets), names[0])
    # What lies under one name may differ from layer to layer.
    parameters = tuple(dict.fromkeys(numberless(target) for name in names for target in targets.get(name, ())))
    said = state.get(first, "used" if parameters else "unused" if known else "unknown")
    return Use(
        group.pattern,
        len(group),
        group.shape,
        tuple(sorted(group.dtypes)),
        group.nbytes,
        ranges(group.layers),
        ranges(group.experts),
        part_of(targets[first][0]) if parameters else guessed_part(group.pattern),
        named_together(list(parameters)) if parameters else "",
        parameters,
        said,
    )


def parts_of(found: Survey, uses: tuple[Use, ...]) -> tuple[Part, ...]:
    """Elements and stored bytes of each part; codes count where their weight does."""
    part_of_pattern = {use.pattern: use.part for use in uses}
    sizes: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for group in found.weight_groups:
        sizes[part_of_pattern[group.pattern]] += group.numel
    for group in found.groups:
        of = part_of_pattern.get(group.pattern) or part_of_pattern.get(_weight_of(group.pattern))
        nbytes[of or guessed_part(group.pattern)] += group.nbytes
    return tuple(Part(part, sizes[part], nbytes[part]) for part in PARTS if sizes[part] or nbytes[part])


def _weight_of(pattern: str) -> str:
    """The name of the weight that a tensor of codes or scales belongs to."""
    stem = _OF_CODES.sub("", pattern)
    return stem if stem.endswith((".weight", "_proj")) else f"{stem}.weight"

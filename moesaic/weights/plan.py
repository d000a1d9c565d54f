"""Strict accounting: which tensor fills which parameter, decided from names and shapes before a byte is read.

Every tensor is consumed or ignored by a rule, every parameter is filled exactly once; all that does not add up is
reported together. Torch-free.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from moesaic.core.errors import CheckpointError, nearest
from moesaic.weights.rules import AnyRule, Index, Place, RuleBook, Shape, View, numberless, whole_shape

MAX_LISTED = 20  # groups of each kind of miss that an error message spells out


@dataclass(frozen=True)
class Copy:
    """One copy to make: part `index` of the checkpoint's tensor `source`, or what `view` says of it, into parameter
    `target`."""

    source: str
    index: Index
    target: str
    view: View | None = None


@dataclass(frozen=True)
class LoadPlan:
    """Copies that fill parameters, tensors that must turn out equal to a filled one, and parameters that are zero: each
    parameter is among the first or the last."""

    copies: list[Copy]
    checks: list[Copy]
    zeros: list[str]


@dataclass(frozen=True)
class Accounting:
    """What of a checkpoint fills what of a model, and all that does not add up.

    Attributes:
        plan: of what does.
        missing: parameters that no tensor fills -> the tensors that they might lie in.
        superfluous: tensors that no parameter takes.
        misshaped: tensors -> the shapes that they have, and that they should have.
        twice: parameters -> the tensors that each would fill them.
        ignored: tensors that a rule says are not needed.
    """

    plan: LoadPlan
    missing: dict[str, list[str]]
    superfluous: list[str]
    misshaped: dict[str, tuple[Shape, Shape]]
    twice: dict[str, list[str]]
    ignored: list[str]

    @property
    def fits(self) -> bool:
        """Whether every tensor has its use, and every parameter is filled once."""
        return not (self.missing or self.superfluous or self.misshaped or self.twice)


def plan_load(
    parameters: Mapping[str, Shape], rules: Iterable[AnyRule], tensors: Mapping[str, Shape], where: str
) -> LoadPlan:
    """Match all `parameters` of the model with all `tensors` of the checkpoint in folder `where`.

    Raises:
        CheckpointError: naming everything that is missing, superfluous, misshaped or filled twice, together.
    """
    accounts = account(parameters, rules, tensors)
    if not accounts.fits:
        lines = "\n".join(_described(accounts, tensors))
        raise CheckpointError(f"the checkpoint in {where} does not fit the model:\n{lines}")
    return accounts.plan


def account(parameters: Mapping[str, Shape], rules: Iterable[AnyRule], tensors: Mapping[str, Shape]) -> Accounting:
    """Match all `parameters` of the model with all `tensors` of a checkpoint."""
    book = RuleBook(rules, parameters, tensors)
    places = {name: book.locate(name, shape) for name, shape in parameters.items()}
    expected = expected_shapes(places)
    ignored = [name for name in tensors if name not in expected and book.ignored(name)]
    surplus = tensors.keys() - expected.keys() - set(ignored)
    checks = [Copy(name, (), book.ties[name]) for name in sorted(surplus & book.ties.keys())]
    expected |= {check.source: parameters[check.target] for check in checks}
    found = {
        name: [Copy(place.source, place.index, name, place.view) for place in options if place.source in tensors]
        for name, options in places.items()
    }
    absent = [name for name, copies in found.items() if not copies]
    zeros = [name for name in absent if any(place.optional for place in places[name])]
    optional = set(zeros)
    return Accounting(
        LoadPlan([copies[0] for copies in found.values() if copies], checks, zeros),
        {name: [place.source for place in places[name]] for name in absent if name not in optional},
        sorted(surplus - book.ties.keys()),
        {n: (tensors[n], expected[n]) for n in tensors if n in expected and tensors[n] != expected[n]},
        {name: [copy.source for copy in copies] for name, copies in found.items() if len(copies) > 1},
        ignored,
    )


def _described(accounts: Accounting, tensors: Mapping[str, Shape]) -> list[str]:
    """All that does not add up, in lines."""
    near_surplus = _NearestNames(accounts.superfluous)
    near_absent = _NearestNames(source for sources in accounts.missing.values() for source in sources)

    def say_missing(name: str) -> str:
        sources = accounts.missing[name]
        return f"expected as {' or '.join(sources) or 'no rule says where from'}{near_surplus.hint(sources)}"

    def say_misshaped(name: str) -> str:
        stored, expected = accounts.misshaped[name]
        return f"is {list(stored)}, the config asks for {list(expected)}"

    return [
        *list_misses("missing (no tensor fills this parameter)", list(accounts.missing), say_missing),
        *list_misses(
            "superfluous (no parameter takes this tensor)",
            accounts.superfluous,
            lambda name: f"shape {list(tensors[name])}{near_absent.hint([name])}",
        ),
        *list_misses("of the wrong shape", list(accounts.misshaped), say_misshaped),
        *list_misses(
            "filled twice", list(accounts.twice), lambda name: f"from {' and from '.join(accounts.twice[name])}"
        ),
    ]


def expected_shapes(places: Mapping[str, list[Place]]) -> dict[str, Shape]:
    """The shape of every tensor that some parameter may lie in, from the parameters in it."""
    parts: dict[str, list[tuple[Index, Shape]]] = defaultdict(list)
    for options in places.values():
        for place in options:
            parts[place.source].append((place.index, place.shape))
            if place.rows:
                some = place.index and isinstance(place.index[0], slice)  # of its rows; or one of them
                last: Index = (slice(0, place.rows),) if some else (place.rows - 1,)
                parts[place.source].append((last, place.shape))
    return {source: whole_shape(found) for source, found in parts.items()}


class _NearestNames:
    """Finds what a name may have been meant for. Names are first compared without their numbers, so that thousands
    cost no more than a few; among those that match, the one closest in its numbers too is named."""

    def __init__(self, candidates: Iterable[str]) -> None:
        self._by_pattern: dict[str, list[str]] = defaultdict(list)
        for candidate in sorted(set(candidates)):
            self._by_pattern[numberless(candidate)].append(candidate)

    def hint(self, names: list[str]) -> str:
        """` (nearest: ...)` for the first of `names` that has a near candidate, else nothing."""
        for name in names:
            for pattern in nearest(numberless(name), self._by_pattern):
                close = nearest(name, self._by_pattern[pattern]) or self._by_pattern[pattern]
                return f" (nearest: {close[0]})"
        return ""


def list_misses(kind: str, names: list[str], say: Callable[[str], str]) -> list[str]:
    """One kind of miss as lines: names that differ in numbers alone share one, and only the first groups are listed."""
    if not names:
        return []
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[numberless(name)].append(name)
    lines = [f"{len(names)} {kind}:"]
    for group in list(groups.values())[:MAX_LISTED]:
        more = f"  [and {len(group) - 1} more like it]" if len(group) > 1 else ""
        lines.append(f"  {group[0]}: {say(group[0])}{more}")
    if len(groups) > MAX_LISTED:
        lines.append(f"  ... and {len(groups) - MAX_LISTED} more kinds of names")
    return lines

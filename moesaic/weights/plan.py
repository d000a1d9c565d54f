"""Strict accounting: which tensor fills which parameter, decided from names and shapes before a byte is read.

Every tensor is consumed or ignored by a rule, every parameter is filled exactly once; all that does not add up is
reported together. Torch-free.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moesaic.core.errors import CheckpointError, nearest
from moesaic.weights.rules import AnyRule, Index, RuleBook, Shape, numberless, whole_shape

MAX_LISTED = 20  # groups of each kind of miss that an error message spells out


@dataclass(frozen=True)
class Copy:
    """One copy to make: part `index` of the checkpoint's tensor `source` into parameter `target`."""

    source: str
    index: Index
    target: str


@dataclass(frozen=True)
class LoadPlan:
    """Copies that fill every parameter once, and tensors that must turn out equal to a filled parameter."""

    copies: list[Copy]
    checks: list[Copy]


@dataclass
class _Misses:
    """What does not add up, by kind: name -> what to say about it."""

    missing: dict[str, str] = field(default_factory=dict)
    superfluous: dict[str, str] = field(default_factory=dict)
    misshaped: dict[str, str] = field(default_factory=dict)
    twice: dict[str, str] = field(default_factory=dict)

    def raise_if_any(self, where: str) -> None:
        kinds = {
            "missing (no tensor fills this parameter)": self.missing,
            "superfluous (no parameter takes this tensor)": self.superfluous,
            "of the wrong shape": self.misshaped,
            "filled twice": self.twice,
        }
        lines = [line for kind, misses in kinds.items() for line in _section(kind, misses)]
        if lines:
            raise CheckpointError(f"the checkpoint in {where} does not fit the model:\n" + "\n".join(lines))


def plan_load(
    parameters: Mapping[str, Shape], rules: Iterable[AnyRule], tensors: Mapping[str, Shape], where: str
) -> LoadPlan:
    """Match all `parameters` of the model with all `tensors` of the checkpoint in folder `where`.

    Raises:
        CheckpointError: naming everything that is missing, superfluous, misshaped or filled twice, together.
    """
    book = RuleBook(rules)
    places = {name: book.locate(name, shape) for name, shape in parameters.items()}
    wanted: dict[str, list[tuple[str, Index]]] = defaultdict(list)  # tensor -> parameters in it
    for name, found in places.items():
        for source, index in found:
            wanted[source].append((name, index))

    misses = _Misses()
    unclaimed = {t for t in tensors if t not in wanted and not book.ignored(t)}
    checks = [Copy(t, (), book.ties[t]) for t in sorted(unclaimed & book.ties.keys())]
    unclaimed -= book.ties.keys()
    for check in checks:
        if tensors[check.source] != parameters[check.target]:
            misses.misshaped[check.source] = _shapes(tensors[check.source], parameters[check.target])
    for source in wanted.keys() & tensors.keys():
        expected = whole_shape([(index, parameters[name]) for name, index in wanted[source]])
        if tensors[source] != expected:
            misses.misshaped[source] = _shapes(tensors[source], expected)

    copies = []
    nearest_unclaimed = _nearest_finder(unclaimed)
    for name, found in places.items():
        present = [Copy(source, index, name) for source, index in found if source in tensors]
        if len(present) > 1:
            misses.twice[name] = "from " + " and from ".join(copy.source for copy in present)
        elif not present:
            expected_names = " or ".join(source for source, _ in found) or "no rule says where from"
            misses.missing[name] = f"expected as {expected_names}{nearest_unclaimed([s for s, _ in found])}"
        copies += present[:1]
    absent = {source for name in misses.missing for source, _ in places[name]}
    nearest_wanted = _nearest_finder(absent or set(wanted))
    for tensor in sorted(unclaimed):
        misses.superfluous[tensor] = f"shape {list(tensors[tensor])}{nearest_wanted([tensor])}"
    misses.raise_if_any(where)
    return LoadPlan(copies, checks)


def _shapes(actual: Shape, expected: Shape) -> str:
    return f"is {list(actual)}, the config asks for {list(expected)}"


def _nearest_finder(candidates: set[str]) -> Callable[[list[str]], str]:
    """A function that words the nearest candidate of a name. Names are compared without their numbers, so that
    thousands of them cost no more than a few; then the one with the name's own numbers is preferred."""
    by_pattern: dict[str, list[str]] = defaultdict(list)
    for candidate in sorted(candidates):
        by_pattern[numberless(candidate)].append(candidate)
    close: dict[str, list[str]] = {}

    def find(names: list[str]) -> str:
        for name in names:
            pattern = numberless(name)
            if pattern not in close:
                close[pattern] = nearest(pattern, by_pattern)
            if close[pattern]:
                return f" (nearest: {(nearest(name, by_pattern[close[pattern][0]][:200]) or [''])[0]})"
        return ""

    return find


def _section(kind: str, misses: Mapping[str, str]) -> list[str]:
    """One kind of miss as lines: names that differ in numbers alone share one, and only the first groups are listed."""
    if not misses:
        return []
    groups: dict[str, list[str]] = defaultdict(list)
    for name in misses:
        groups[numberless(name)].append(name)
    lines = [f"{len(misses)} {kind}:"]
    for names in list(groups.values())[:MAX_LISTED]:
        more = f"  [and {len(names) - 1} more like it]" if len(names) > 1 else ""
        lines.append(f"  {names[0]}: {misses[names[0]]}{more}")
    if len(groups) > MAX_LISTED:
        lines.append(f"  ... and {len(groups) - MAX_LISTED} more kinds of names")
    return lines

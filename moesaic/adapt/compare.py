"""What an architecture looks for in a model of some sizes, paired with what a checkpoint has. Torch-free.

Each architecture's own rules say which tensors it would look for. A pattern of names that is among them with the right
shape counts fully; one that agrees from the layer's number on (`model.` or not before it), nearly; one that only has
the shape of something that the architecture wants, as far as its words agree.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from moesaic.adapt.names import Group, group_names
from moesaic.adapt.parts import named_together
from moesaic.models.parameters import parameter_shapes
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.weights.plan import expected_shapes
from moesaic.weights.rules import RuleBook, Shape, numberless
from moesaic.weights.tensors import TensorInfo

BY_TAIL, BY_SHAPE, BY_WORDS = 0.95, 0.6, 0.3  # credits beside a full one; of words, so much more at most


@dataclass(frozen=True)
class Match:
    """A pattern of the checkpoint and what it would be in an architecture.

    Attributes:
        pattern: the checkpoint's.
        source: the name that the architecture's rules have for it.
        becomes: in words.
        parameters: canonical, `#` for numbers.
        credit: from 0 to 1: 1 for the very name and shape.
    """

    pattern: str
    source: str
    becomes: str
    parameters: tuple[str, ...]
    credit: float


@dataclass(frozen=True)
class Wanted:
    """A tensor that an architecture looks for, and the parameters in it."""

    pattern: str
    variables: tuple[str, ...]
    shape: Shape
    parameters: tuple[str, ...]


def wanted_by(architecture: Architecture, spec: ModelSpec) -> list[list[Wanted]]:
    """For each kind of parameter, the tensors that it may lie in."""
    distinct: dict[Any, int] = {}
    for index, layer in enumerate(spec.layers):
        distinct.setdefault(layer, index)
    shapes = _two_of_many(parameter_shapes(spec, set(distinct.values())))
    book = RuleBook(architecture.rules(spec), shapes)
    places = {name: book.locate(name, shape) for name, shape in shapes.items()}
    expected = expected_shapes(places)
    inside: dict[str, list[str]] = defaultdict(list)
    for name, options in places.items():
        for place in options:
            inside[place.source].append(numberless(name))
    patterns = {}
    for group in group_names({name: TensorInfo("F32", shape, "") for name, shape in expected.items()}):
        for name in group.names.values():
            parameters = tuple(dict.fromkeys(inside[name]))
            patterns[name] = Wanted(group.pattern, group.variables, expected[name], parameters)
    kinds: dict[tuple[str, Shape], list[Wanted]] = {}
    for name, options in places.items():
        wanted = [patterns[place.source] for place in options]
        if wanted and not (all(place.optional for place in options)):
            kinds.setdefault((numberless(name), shapes[name]), list(dict.fromkeys(wanted)))
    return list(kinds.values())


def _two_of_many(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Of parameters that differ in the last number of their names alone, those with the first and the last number."""
    ends: dict[str, list[str]] = {}
    for name in shapes:
        words = name.split(".")
        last = max((i for i, word in enumerate(words) if word.isdecimal()), default=-1)
        if last > 1:
            key = ".".join((*words[:last], "#", *words[last + 1 :]))
            kept = ends.setdefault(key, [name])
            ends[key] = [kept[0], name]
        else:
            ends[name] = [name]
    return {name: shapes[name] for names in ends.values() for name in names}


@dataclass
class Comparison:
    """What came of pairing: a score from 0 to 1, and patterns that are nothing there, of another shape there, and
    what is wanted and not there, in words."""

    score: float
    matches: list[Match]
    unexplained: list[str]
    unfilled: list[str]
    misshaped: list[str]


def compare(groups: Sequence[Group], wanted: Sequence[Sequence[Wanted]]) -> Comparison:
    """Pair patterns with what is wanted: by name and shape, by the name's tail and shape, by shape alone."""
    left = {group.pattern: group for group in groups}
    matches: list[Match] = []
    misshaped: list[str] = []
    taken: dict[Wanted, str] = {}
    open_kinds = []
    tails: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        tails[_tail(group.pattern)].append(group)
    for options in wanted:
        for option in options:
            group = left.get(option.pattern) or _by_tail(tails, option)
            if option in taken:
                break
            if group is not None and option.shape in group.shapes and group.pattern not in taken.values():
                credit = 1.0 if group.pattern == option.pattern else BY_TAIL
                matches.append(_match(group.pattern, option, credit))
                taken[option] = group.pattern
                break
            if group is not None and group.pattern == option.pattern and group.pattern not in misshaped:
                misshaped.append(group.pattern)
        else:
            open_kinds.append(options)
    for match in matches:
        left.pop(match.pattern, None)
    rest, unfilled = _by_shapes(left, open_kinds)
    matches += rest
    for match in rest:
        left.pop(match.pattern, None)
    misshaped = [pattern for pattern in misshaped if pattern in left]
    credit = sum(match.credit for match in matches)
    total = len(groups) + len({match.source for match in matches}) + len(unfilled)
    words = list(dict.fromkeys(named_together(list(option.parameters)) for option in unfilled))
    unexplained = [pattern for pattern in left if pattern not in misshaped]
    return Comparison(2 * credit / total if total else 0.0, matches, unexplained, words, misshaped)


def _by_shapes(left: Mapping[str, Group], open_kinds: Sequence[Sequence[Wanted]]) -> tuple[list[Match], list[Wanted]]:
    """Pairs of what has the same shape and counts the same, the most alike in words first; and what stays without."""
    by_shape: dict[tuple[bool, bool, Shape], list[Group]] = defaultdict(list)
    for group in left.values():
        by_shape[_signature(group.variables, group.shape)].append(group)
    pairs = []
    for options in open_kinds:
        for option in options:
            for group in by_shape.get(_signature(option.variables, option.shape), ()):
                pairs.append((_alike(group.pattern, option.pattern), group.pattern, option, options))
    pairs.sort(key=lambda pair: -pair[0])
    matches: list[Match] = []
    used: set[str] = set()
    filled: dict[str, str] = {}  # source pattern -> the checkpoint's
    done: set[int] = set()
    for alike, pattern, option, options in pairs:
        if id(options) in done:
            continue
        if filled.get(option.pattern) is not None:
            done.add(id(options))
        elif pattern not in used:
            used.add(pattern)
            filled[option.pattern] = pattern
            done.add(id(options))
            matches.append(_match(pattern, option, BY_SHAPE + BY_WORDS * alike))
    return matches, [options[0] for options in open_kinds if id(options) not in done]


def _match(pattern: str, option: Wanted, credit: float) -> Match:
    words = named_together(list(option.parameters))
    return Match(pattern, option.pattern, words, option.parameters, round(credit, 3))


def _signature(variables: Sequence[str], shape: Shape) -> tuple[bool, bool, Shape]:
    return "l" in variables, "e" in variables, tuple(sorted(shape))


def _tail(pattern: str) -> str:
    """What follows the layer's number; of a name without one, its last two parts."""
    head, layer, tail = pattern.partition("{l}")
    return tail if layer else ".".join(head.split(".")[-2:])


def _by_tail(tails: Mapping[str, Sequence[Group]], option: Wanted) -> Group | None:
    fitting = [group for group in tails.get(_tail(option.pattern), ()) if option.shape in group.shapes]
    return fitting[0] if fitting else None


@cache
def _alike(pattern: str, other: str) -> float:
    """From 0 to 1, how alike two names are."""
    return SequenceMatcher(None, pattern, other, autojunk=False).ratio()

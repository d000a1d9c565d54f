"""Weight rules: which tensor of a checkpoint, and which part of it, each canonical parameter is. Torch-free.

A rule relates two name templates, so it reads in both directions: loading asks where a parameter comes from,
converting asks where it goes. Templates hold variables in braces: `{l}` and `{e}` stand for numbers (layer, expert),
`{any}` for whatever follows, every other one for a word, such as `{p}` for weight or bias. Canonical names are as fine
as names get (`layers.3.mlp.experts.7.gate.weight`), so that fused, split and stacked checkpoints all reach the same
parameters.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

VARIABLES = {"l": "[0-9]+", "e": "[0-9]+", "any": ".+"}  # what these stand for in a template; others are words
NUMBERS = re.compile(r"(?<![^.])((?:(?:layer|expert|block)s?[_-])?)\d+(?![^.])")
Index = tuple["int | slice", ...]  # which part of a tensor, as torch indexes it; () is all of it
Shape = tuple[int, ...]
NONE: Mapping[str, Shape] = {}


@dataclass(frozen=True)
class View:
    """What of a part that was read a parameter is, where it does not lie there row after row.

    Attributes:
        shape: of the part as it is stored.
        cut: which of its rows; of its columns, where it is transposed; None for all.
        transposed: the parameter is its transpose.
        turns: `(first, count, every)`: of every so many rows, so many from the first on.
    """

    shape: Shape
    cut: slice | None
    transposed: bool
    turns: tuple[int, int, int] | None = None

    def take(self, part: Any) -> Any:
        """What a parameter is, of a part that was read (a torch tensor)."""
        if self.transposed:
            return part[..., self.cut or slice(None)].T
        return self.rows(part)

    def rows(self, part: Any) -> Any:
        """Which rows of a part the parameter is; where it lies transposed, of the part's transpose."""
        if self.turns is not None:
            first, count, every = self.turns
            return part.unflatten(0, (-1, every))[:, first : first + count].flatten(0, 1)
        return part[self.cut or slice(None)]


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: part `index` of the checkpoint's tensor `source`, and of that what `view` says.

    Attributes:
        shape: of the part.
        optional: where the checkpoint has no such tensor, the parameter is zero.
        rows: that the tensor has at least.
    """

    source: str
    index: Index
    shape: Shape
    view: View | None = None
    optional: bool = False
    rows: int = 0


@dataclass(frozen=True)
class Rule:
    """The parameter named `target` is a part of the checkpoint's tensor `source`.

    Attributes:
        source, target: templates; each variable of the source stands in the target too.
        stacked: the variable of the target that counts along the source's first dimension.
        flat: what is stacked is not a dimension of its own: number n has the n-th equal part of the rows.
        part, parts: the target is the part-th of this many equal parts along the (next) dimension, its own first one.
        interleaved: these parts take turns, instead of one following the other.
        transposed: the source holds the target's transpose.
        either: `transposed` or not, as the source's shape tells; not, where it tells nothing.
        row: the source is a matrix of so many rows, of which the target is the first; 0 where it is no matrix.
        start: the target is the rows of the source from this one on.
        after: the target is the rows of the source that follow those of these parameters; () for the first ones, None
            where the source holds no more than the target.
        turns: `(first, count, every)`: of every so many rows of the source, the target has so many, from the first on.
        padded: the source may have more rows behind the target's, which stand for nothing.
        rows: of such a source, once it is known (`settled`).
        every, offset: number l of the source's layers is number every * l + offset of the target's.
        optional: as of Place.
    """

    source: str
    target: str
    stacked: str | None = None
    flat: bool = False
    part: int = 0
    parts: int = 1
    interleaved: bool = False
    transposed: bool = False
    either: bool = False
    row: int = 0
    start: int = 0
    after: tuple[str, ...] | None = None
    turns: tuple[int, int, int] | None = None
    padded: bool = False
    rows: int = 0
    every: int = 1
    offset: int = 0
    optional: bool = False

    def locate(self, name: str, shape: Shape, parameters: Mapping[str, Shape] = NONE) -> Place | None:
        """Where parameter `name` of `shape` lies. None when the rule is not about it.

        Args:
            parameters: shapes of those that `after` names.
        """
        found = _pattern(self.target).fullmatch(name)
        if found is None:
            return None
        variables = found.groupdict()
        if self.every > 1:
            layer, rest = divmod(int(variables["l"]) - self.offset, self.every)
            if rest:
                return None
            variables["l"] = str(layer)
        source = self.source.format(**variables)
        index: list[int | slice] = [0] if self.row else []
        stored, view = self._stored(shape)
        if self.stacked is not None:
            number = int(variables[self.stacked])
            index.append(slice(number * stored[0], (number + 1) * stored[0]) if self.flat else number)
        if self.parts > 1 and view is None:
            index.append(slice(self.part * shape[0], (self.part + 1) * shape[0]))
        if self.rows:
            index.append(slice(0, shape[0]))
        if self.start or self.after is not None:
            before = (parameters[template.format(**variables)][0] for template in self.after or ())
            start = self.start + sum(before)
            index.append(slice(start, start + shape[0]))
        return Place(source, tuple(index), stored, view, self.optional, self.row or self.rows)

    def settled(self, name: str, shape: Shape, tensors: Mapping[str, Shape]) -> "Rule":
        """The same rule, and whether the source of parameter `name` is transposed, or how many rows it has, as these
        tensors of a checkpoint have it."""
        found = _pattern(self.target).fullmatch(name)
        if found is None or not (self.either or self.padded):
            return self
        if self.padded:
            rows = tensors.get(self.source.format(**found.groupdict()), shape)[:1]
            return replace(self, padded=False, rows=max(shape[0], *rows))
        as_is = shape[0] * self.parts, *shape[1:]
        stored = tensors.get(self.source.format(**found.groupdict()), as_is)[-len(as_is) :]
        return replace(self, either=False, transposed=stored != as_is)

    def _stored(self, shape: Shape) -> tuple[Shape, View | None]:
        """The shape of what is read for a parameter of `shape`, and how it lies in there."""
        if self.turns is not None:
            stored = (shape[0] // self.turns[1] * self.turns[2], *shape[1:])
            return stored, View(stored, None, False, self.turns)
        if not self.transposed and not self.interleaved:
            return shape, None
        rows = shape[0] * self.parts
        cut = None
        if self.parts > 1 and self.interleaved:
            cut = slice(self.part, rows, self.parts)
        elif self.parts > 1:
            cut = slice(self.part * shape[0], (self.part + 1) * shape[0])
        # What is cut is a row of the target: the last dimension of what is stored where that is its transpose.
        stored = (*shape[1:], rows) if self.transposed else (rows, *shape[1:])
        return stored, View(stored, cut, self.transposed)


@dataclass(frozen=True)
class Ignore:
    """Tensors that may be there and are not needed."""

    source: str
    reason: str

    def covers(self, name: str) -> bool:
        """True when the checkpoint's tensor `name` is meant."""
        return _pattern(self.source).fullmatch(name) is not None


@dataclass(frozen=True)
class Tied:
    """The checkpoint's tensor `source`, where no parameter of the model wants it, must equal parameter `target`."""

    source: str
    target: str


AnyRule = Rule | Ignore | Tied


def rename(source: str, target: str) -> Rule:
    """A tensor under another name."""
    return Rule(source, target)


def experts(source: str, gate: str, up: str, down: str, target: str = "layers.{l}.mlp.experts.{e}") -> tuple[Rule, ...]:
    """One tensor for each projection of each expert: `{source}.{gate}.weight`, and so on."""
    names = {"gate": gate, "up": up, "down": down}
    return tuple(Rule(f"{source}.{theirs}.weight", f"{target}.{ours}.weight") for ours, theirs in names.items())


def packed(source: str, *targets: str) -> tuple[Rule, ...]:
    """Parameters whose rows follow each other in one tensor."""
    return tuple(Rule(source, target, after=targets[:i]) for i, target in enumerate(targets))


def fused_experts(
    gate_up: str,
    down: str,
    target: str = "layers.{l}.mlp.experts.{e}",
    interleaved: bool = False,
    transposed: bool = False,
    either: bool = False,
    kind: str = "weight",
) -> tuple[Rule, ...]:
    """All experts of a layer stacked: gate over up `[E, 2I, H]`, and down `[E, H, I]`.

    Args:
        interleaved: gate's and up's rows take turns.
        transposed: `[E, H, 2I]` and `[E, I, H]`.
        either: transposed or not, as the shapes tell.
        kind: "weight", or "bias", of which the last dimension is not there.
    """
    how = {"stacked": "e", "transposed": transposed, "either": either}
    both = {**how, "parts": 2, "interleaved": interleaved}
    return (
        Rule(gate_up, f"{target}.gate.{kind}", part=0, **both),  # type: ignore[arg-type]
        Rule(gate_up, f"{target}.up.{kind}", part=1, **both),  # type: ignore[arg-type]
        Rule(down, f"{target}.down.{kind}", **how),  # type: ignore[arg-type]
    )


def ignore(source: str, reason: str) -> Ignore:
    """Tensors that may be there and are not needed, and why."""
    return Ignore(source, reason)


def tied(source: str, target: str) -> Tied:
    """A second copy that a checkpoint with tied parameters may hold; it must be equal."""
    return Tied(source, target)


class RuleBook:
    """A list of rules, asked about one name at a time; names that differ in numbers alone are matched once.

    Args:
        parameters, tensors: shapes of the model's and of the checkpoint's, for rules that depend on them.
    """

    def __init__(
        self, rules: Iterable[AnyRule], parameters: Mapping[str, Shape] = NONE, tensors: Mapping[str, Shape] = NONE
    ) -> None:
        rules = list(rules)
        self._parameters, self._tensors = parameters, tensors
        self.ties = {r.source: r.target for r in rules if isinstance(r, Tied)}
        self._rules = [r for r in rules if isinstance(r, Rule)]
        self._ignores = [r for r in rules if isinstance(r, Ignore)]
        self._by_pattern: dict[str, list[Rule]] = {}

    def locate(self, name: str, shape: Shape) -> list[Place]:
        """All places where parameter `name` may lie, in the order of the rules."""
        pattern = numberless(name)
        if pattern not in self._by_pattern:
            self._by_pattern[pattern] = [r for r in self._rules if _pattern(r.target).fullmatch(name)]
        rules = [rule.settled(name, shape, self._tensors) for rule in self._by_pattern[pattern]]
        places = [rule.locate(name, shape, self._parameters) for rule in rules]
        return [place for place in places if place is not None]

    def ignored(self, name: str) -> bool:
        """True when a rule says that the checkpoint's tensor `name` is not needed."""
        return any(rule.covers(name) for rule in self._ignores)


def numberless(name: str) -> str:
    """The name with each number replaced by `#`, also in `layer_3` and `expert_3`: what tensors of different layers and
    experts share."""
    return NUMBERS.sub(r"\1#", name)


def whole_shape(parts: Sequence[tuple[Index, Shape]]) -> Shape:
    """The shape of a tensor that consists of these parts (each an index and the shape found there)."""
    extents = []
    for index, shape in parts:
        # An int takes a dimension away, so the part's own shape continues after the ints.
        num_ints = sum(isinstance(i, int) for i in index)
        stops = [i + 1 if isinstance(i, int) else int(i.stop) for i in index]
        extents.append((*stops, *shape[len(index) - num_ints :]))
    return tuple(max(sizes) for sizes in zip(*extents, strict=True))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template."""
    pieces = re.split(r"\{(\w+)\}", template)
    for i in range(1, len(pieces), 2):
        pieces[i] = rf"(?P<{pieces[i]}>{VARIABLES.get(pieces[i], '[a-z_]+')})"
        pieces[i - 1] = re.escape(pieces[i - 1])
    pieces[-1] = re.escape(pieces[-1])
    return re.compile("".join(pieces))

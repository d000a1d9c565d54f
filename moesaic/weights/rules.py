"""Weight rules: which tensor of a checkpoint, and which part of it, each canonical parameter is. Torch-free.

A rule relates two name templates, so it reads in both directions: loading asks where a parameter comes from,
converting asks where it goes. Templates hold variables in braces: `{l}` and `{e}` stand for numbers (layer, expert),
every other one for a word, such as `{p}` for weight or bias. Canonical names are as fine as names get
(`layers.3.mlp.experts.7.gate.weight`), so that fused, split and stacked checkpoints all reach the same parameters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

Index = tuple["int | slice", ...]  # which part of a tensor, as torch indexes it; () is all of it
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """The parameter named `target` is a part of the checkpoint's tensor `source`.

    Attributes:
        source, target: templates; each variable of the source stands in the target too.
        stacked: the variable of the target that counts along the source's first dimension.
        part, parts: the target is the part-th of this many equal parts along the (next) dimension.
    """

    source: str
    target: str
    stacked: str | None = None
    part: int = 0
    parts: int = 1

    def locate(self, name: str, shape: Shape) -> tuple[str, Index] | None:
        """Where parameter `name` of `shape` lies: tensor and part of it. None when the rule is not about it."""
        found = _pattern(self.target).fullmatch(name)
        if found is None:
            return None
        variables = found.groupdict()
        index: list[int | slice] = []
        if self.stacked is not None:
            index.append(int(variables[self.stacked]))
        if self.parts > 1:
            index.append(slice(self.part * shape[0], (self.part + 1) * shape[0]))
        return self.source.format(**variables), tuple(index)


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


def fused_experts(gate_up: str, down: str, target: str = "layers.{l}.mlp.experts.{e}") -> tuple[Rule, ...]:
    """All experts of a layer stacked: gate over up `[E, 2I, H]`, and down `[E, H, I]`."""
    return (
        Rule(gate_up, f"{target}.gate.weight", stacked="e", part=0, parts=2),
        Rule(gate_up, f"{target}.up.weight", stacked="e", part=1, parts=2),
        Rule(down, f"{target}.down.weight", stacked="e"),
    )


def ignore(source: str, reason: str) -> Ignore:
    """Tensors that may be there and are not needed, and why."""
    return Ignore(source, reason)


def tied(source: str, target: str) -> Tied:
    """A second copy that a checkpoint with tied parameters may hold; it must be equal."""
    return Tied(source, target)


class RuleBook:
    """A list of rules, asked about one name at a time; names that differ in numbers alone are matched once."""

    def __init__(self, rules: Iterable[AnyRule]) -> None:
        rules = list(rules)
        self.ties = {r.source: r.target for r in rules if isinstance(r, Tied)}
        self._rules = [r for r in rules if isinstance(r, Rule)]
        self._ignores = [r for r in rules if isinstance(r, Ignore)]
        self._by_pattern: dict[str, list[Rule]] = {}

    def locate(self, name: str, shape: Shape) -> list[tuple[str, Index]]:
        """All places where parameter `name` may lie, in the order of the rules."""
        pattern = numberless(name)
        if pattern not in self._by_pattern:
            self._by_pattern[pattern] = [r for r in self._rules if r.locate(name, shape) is not None]
        places = [rule.locate(name, shape) for rule in self._by_pattern[pattern]]
        return [place for place in places if place is not None]

    def ignored(self, name: str) -> bool:
        """True when a rule says that the checkpoint's tensor `name` is not needed."""
        return any(rule.covers(name) for rule in self._ignores)


def numberless(name: str) -> str:
    """The name with each number replaced by `#`: what tensors of different layers and experts share."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


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
    """The regular expression of a template: `{l}` and `{e}` are numbers, other variables words."""
    pieces = re.split(r"\{(\w+)\}", template)
    for i in range(1, len(pieces), 2):
        pieces[i] = rf"(?P<{pieces[i]}>{'[0-9]+' if pieces[i] in ('l', 'e') else '[a-z_]+'})"
        pieces[i - 1] = re.escape(pieces[i - 1])
    pieces[-1] = re.escape(pieces[-1])
    return re.compile("".join(pieces))

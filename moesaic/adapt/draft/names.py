"""What the words in names of tensors say: of which layer's part, and weight or bias. Torch-free."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from moesaic.adapt.names import Group
from moesaic.models.aliases import split_words
from moesaic.weights.rules import Shape

EXPERT_WORDS = {"expert", "experts", "exp"}
KINDS = {  # what the last part of a name says of a tensor, where it does
    "weight": "weight", "kernel": "weight", "gamma": "weight", "scale": "weight", "embedding": "weight",
    "bias": "bias", "beta": "bias",
}  # fmt: skip
NOISE = {"proj", "projs", "projection", "linear", "lin", "to", "w", "and", "c", "layer", "mat", "matrix", "dense"}


@dataclass(frozen=True)
class Named:
    """Tensors whose names differ in the numbers of layer and expert alone.

    Attributes:
        template: the name, as a weight rule spells it: `layer_{l}.expert_{e}.up_proj.weight`.
        shape: of most.
        layers, experts: the numbers found, sorted; () where the name has none.
        where: words of all parts of the name but the last one that is no kind.
        leaf: words of that one, without those that say nothing.
        kind: "weight" or "bias".
        named: the name says what kind it is.
    """

    template: str
    shape: Shape
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    where: tuple[str, ...]
    leaf: tuple[str, ...]
    kind: str
    named: bool

    @property
    def words(self) -> set[str]:
        """All words of the name."""
        return {*self.where, *self.leaf}

    @property
    def stem(self) -> str:
        """The template without its kind."""
        return self.template.rpartition(".")[0] if self.named else self.template

    @property
    def tail(self) -> str:
        """The last part's words as one: `q`, `w1`, `gate_up`, `wi_0`."""
        return "_".join(self.leaf)


def read_names(groups: Iterable[Group]) -> list[Named]:
    """What the names of all groups say, in the order in which they come."""
    return [named for group in groups for named in apart(group)]


def apart(group: Group) -> list[Named]:
    """A group, once for each of its numbers that count neither layers nor experts: they are part of the name."""
    others = [v for v in group.variables if v not in ("l", "e")]
    if not others:
        return [_named(group.pattern, group.shape, group.layers, group.experts)]
    found = []
    for numbers in product(*(group.values(v) for v in others)):
        pattern = group.pattern
        for variable, number in zip(others, numbers, strict=True):
            pattern = pattern.replace(f"{{{variable}}}", str(number))
        of_these = [
            dict(zip(group.variables, key, strict=True))
            for key in group.names
            if tuple(v for n, v in zip(group.variables, key, strict=True) if n in others) == numbers
        ]
        if of_these:
            layers, experts = (tuple(sorted({n[v] for n in of_these if v in n})) for v in "le")
            found.append(_named(pattern, group.shape, layers, experts))
    return found


def _named(template: str, shape: Shape, layers: tuple[int, ...], experts: tuple[int, ...]) -> Named:
    parts = template.split(".")
    named = len(parts) > 1 and parts[-1].lower() in KINDS
    kind = KINDS[parts[-1].lower()] if named else "weight"
    body = parts[:-1] if named else parts
    words = [split_words(re.sub(r"\{[le]\}", "", part)) for part in body]
    last = words[-1] or (words[-2] if len(words) > 1 else [])
    if not named and last[-1:] == ["bias"] and len(last) > 1:
        kind, last = "bias", last[:-1]
    telling = [word for word in last if word not in NOISE]
    where = tuple(word for part in words[:-1] for word in part)
    return Named(template, shape, layers, experts, where, tuple(telling or last), kind, named)

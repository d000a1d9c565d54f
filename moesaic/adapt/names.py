"""Names of tensors that differ in numbers alone, as patterns: `layers.{l}.experts.{e}.w1.weight`. Torch-free.

Which digits of a name count something and which belong to a word (`w1`, `conv1d`) is told from where they stand: a
number between dots counts, and so does one behind a word that says of what (`expert_3`), or one that takes many values.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from moesaic.weights.rules import Shape
from moesaic.weights.tensors import TensorInfo

LAYER_WORDS = {"layer", "layers", "block", "blocks", "blk", "h", "decoderlayer", "resblocks", "resblock"}
EXPERT_PARENTS = {"moe", "mlps"}  # `moe.3.w1` counts experts
FEED_FORWARD = ("ffn", "mlp", "moe", "feed_forward", "feedforward")
MANY = 5  # values from which on digits in a word count something, whatever the word
OTHERS = "nmijk"  # placeholders of what is neither layer nor expert
_DIGITS = re.compile(r"(\d+)")
_LAST_WORD = re.compile(r"([A-Za-z]+)[._-]?$")


@dataclass(frozen=True)
class Group:
    """Tensors whose names differ in numbers alone.

    Attributes:
        pattern: the name, with `{l}` for the layer, `{e}` for the expert, other letters for other numbers.
        variables: the pattern's placeholders, in order.
        names: of the tensors, by their numbers: values of `variables` -> name.
        shapes, dtypes: how many tensors have which.
        nbytes: as stored, together.
    """

    pattern: str
    variables: tuple[str, ...]
    names: Mapping[tuple[int, ...], str] = field(repr=False)
    shapes: Mapping[Shape, int]
    dtypes: Mapping[str, int]
    nbytes: int

    def __len__(self) -> int:
        return len(self.names)

    def values(self, variable: str) -> tuple[int, ...]:
        """The numbers that stand for a placeholder, sorted; () where the pattern has none such."""
        if variable not in self.variables:
            return ()
        place = self.variables.index(variable)
        return tuple(sorted({numbers[place] for numbers in self.names}))

    @property
    def layers(self) -> tuple[int, ...]:
        return self.values("l")

    @property
    def experts(self) -> tuple[int, ...]:
        return self.values("e")

    @property
    def shape(self) -> Shape:
        """The shape that most of them have."""
        return max(self.shapes, key=lambda shape: self.shapes[shape])

    @property
    def numel(self) -> int:
        """Elements of all tensors, as stored."""
        total = 0
        for shape, count in self.shapes.items():
            size = count
            for n in shape:
                size *= n
            total += size
        return total

    @cached_property
    def parent(self) -> str:
        """The pattern up to the expert's number: what the tensors of one expert share; "" where there is none."""
        head, brace, _ = self.pattern.partition("{e}")
        return head + brace if brace else ""


def group_names(tensors: Mapping[str, TensorInfo]) -> list[Group]:
    """All tensors in groups, each in the order of the first of it."""
    by_skeleton: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for name in tensors:
        pieces = _DIGITS.split(name)
        by_skeleton[tuple(pieces[::2])].append((tuple(pieces[1::2]), name))
    groups = []
    for words, entries in by_skeleton.items():
        variables = _variables(words, [set(column) for column in zip(*(digits for digits, _ in entries), strict=True)])
        # Digits that belong to a word tell groups apart: w1 is not w2.
        apart: dict[tuple[str, ...], dict[tuple[int, ...], str]] = defaultdict(dict)
        for digits, name in entries:
            literal = tuple(d for d, v in zip(digits, variables, strict=True) if v is None)
            numbers = tuple(int(d) for d, v in zip(digits, variables, strict=True) if v is not None)
            apart[literal][numbers] = name
        for literal, names in apart.items():
            groups.append(_group(words, variables, literal, names, tensors))
    order = {name: i for i, name in enumerate(tensors)}
    return sorted(groups, key=lambda group: order[next(iter(group.names.values()))])


def pattern_of(name: str) -> str:
    """The pattern of one name by itself."""
    return group_names({name: TensorInfo("F32", (), "")})[0].pattern


def _group(
    words: Sequence[str],
    variables: Sequence[str | None],
    literal: tuple[str, ...],
    names: dict[tuple[int, ...], str],
    tensors: Mapping[str, TensorInfo],
) -> Group:
    digits = iter(literal)
    pieces = [words[0]]
    for variable, word in zip(variables, words[1:], strict=True):
        pieces += [next(digits) if variable is None else f"{{{variable}}}", word]
    infos = [tensors[name] for name in names.values()]
    return Group(
        "".join(pieces),
        tuple(v for v in variables if v is not None),
        dict(sorted(names.items())),
        Counter(info.shape for info in infos),
        Counter(info.dtype for info in infos),
        sum(info.nbytes for info in infos),
    )


def _variables(words: Sequence[str], values: Sequence[set[str]]) -> list[str | None]:
    """What each run of digits between `words` stands for; None where it belongs to a word."""
    counts = [_counts("#".join(words[: place + 1]), words[place + 1], values[place]) for place in range(len(values))]
    found: list[str | None] = [None] * len(values)
    before = ""
    for place, word in enumerate(words[:-1]):
        before += word
        last = _LAST_WORD.search(before)
        says = last[1].lower() if last else ""
        if counts[place] and says in LAYER_WORDS and "l" not in found:
            found[place] = "l"
        elif counts[place] and "e" not in found and _of_experts(before, says):
            found[place] = "e"
        before += "#"
    others = iter(OTHERS)
    before = ""
    for place, word in enumerate(words[:-1]):
        before += word
        if counts[place] and found[place] is None:
            if "l" not in found and "e" not in found[:place]:
                found[place] = "l"
            elif "e" not in found and "l" in found[:place] and _in_feed_forward(before) and len(values[place]) > 1:
                found[place] = "e"
            else:
                found[place] = next(others, "n")
        before += "#"
    return found


def _counts(before: str, after: str, values: set[str]) -> bool:
    """Whether the digits between `before` and `after` count something."""
    if after[:1].isalpha() or any(len(v) > 1 and v[0] == "0" for v in values):
        return False  # conv1d; 007
    if before[-1:] in ("", ".") and after[:1] in ("", "."):
        return True
    last = _LAST_WORD.search(before)
    says = last[1].lower() if last else ""
    if says in LAYER_WORDS - {"h"} or "expert" in says or (says in ("weight", "bias") and "experts" in before):
        return True
    return len(values) >= MANY


def _of_experts(before: str, says: str) -> bool:
    if "expert" in says or says in EXPERT_PARENTS:
        return True
    return "experts" in before and not before.endswith(".")  # experts.linear_fc1.weight7


def _in_feed_forward(before: str) -> bool:
    return any(word in before.rpartition("#")[2].lower() for word in FEED_FORWARD)


def ranges(numbers: Iterable[int]) -> str:
    """`0..3, 5, 7..9`."""
    parts = []
    for _, run in groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        parts.append(str(found[0]) if len(found) == 1 else f"{found[0]}..{found[-1]}")
    return ", ".join(parts)


def listed(words: Iterable[object], most: int = 6) -> str:
    """`3`, `3 and 7`, `1, 2 and 3`, `1, 2, 3 and 9 more`."""
    all_of = [str(word) for word in words]
    if len(all_of) > most:
        return f"{', '.join(all_of[:most])} and {len(all_of) - most} more"
    return " and ".join(filter(None, [", ".join(all_of[:-1]), *all_of[-1:]]))

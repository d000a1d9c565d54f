"""What a routing function is given, and what it gives back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, overload

import torch
from torch import Tensor

from moesaic.kernels.reference_router import FAULTS, ZEROS


class TokenLabels:
    """A vector of T tokens, each with the labels of its sequence: comparing it with a label gives a mask over tokens.

    A token has any number of labels. `labels == "a"` is true where one of them is "a", `labels != "a"` where none is.

    Args:
        of_sequence: the labels of each of S sequences.
        sequence: `[T]` int64, which of them a token belongs to.
        one_each: each sequence has one token, as when all decode.
    """

    def __init__(self, of_sequence: Sequence[Sequence[str]], sequence: Tensor, one_each: bool = False) -> None:
        self._of_sequence = of_sequence
        self._sequence = sequence
        self._one_each = one_each
        self._found: dict[frozenset[str], Tensor] = {}  # `[S]` bool: every layer of a step asks for the same

    def __eq__(self, label: object) -> Tensor:
        """Tokens `[T]` bool with this label. Raises TypeError unless it is text."""
        if not isinstance(label, str):
            raise TypeError(f"labels are compared with text, got {type(label).__name__}; isin() takes several")
        return self.isin((label,))

    def __ne__(self, label: object) -> Tensor:
        """Tokens `[T]` bool without this label."""
        return ~(self == label)

    def isin(self, labels: Sequence[str]) -> Tensor:
        """Tokens `[T]` bool with any of these labels."""
        if isinstance(labels, str):
            raise TypeError(f"isin() takes a list of labels; compare with == {labels!r} for one")
        wanted = frozenset(labels)
        found = self._found.get(wanted)
        if found is None:
            flags = [not wanted.isdisjoint(own) for own in self._of_sequence]
            found = self._found[wanted] = torch.tensor(flags, dtype=torch.bool, device=self._sequence.device)
        return found.clone() if self._one_each else found[self._sequence]

    def __len__(self) -> int:
        return int(self._sequence.shape[0])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: "slice | Tensor") -> Self: ...
    def __getitem__(self, index: "int | slice | Tensor") -> "tuple[str, ...] | Self":
        """A token's labels, or the vector of some of the tokens."""
        if isinstance(index, int):
            return tuple(self._of_sequence[int(self._sequence[index])])
        part = type(self)(self._of_sequence, self._sequence[index])
        part._found = self._found
        return part

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (tuple(self._of_sequence[s]) for s in self._sequence.tolist())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[list(labels) for labels in self]})"


class DomainTags(TokenLabels):
    """The routing tags of each token's request: several, one or none."""


class RequestIds(TokenLabels):
    """The id of each token's request."""


@dataclass(frozen=True)
class RoutingInput:
    """The T tokens of a step in one layer with E experts, before the choice.

    Attributes:
        layer: index of the decoder layer.
        logits: `[T, E]` fp32, what the router gives, with the request's temperature and bias; -inf for banned experts.
        scores: `[T, E]` fp32, the router's own scoring of them (softmax or sigmoid, say), and what functions before
            this one have made of that.
        tags: `[T]`, of the tokens' requests.
        positions: `[T]` int64, the tokens' places in their sequences.
        request_ids: `[T]`.
        k: `[T]` int64, experts that each token is to have.
    """

    layer: int
    logits: Tensor
    scores: Tensor
    tags: DomainTags
    positions: Tensor
    request_ids: RequestIds
    k: Tensor

    def of(self, rows: slice | Tensor) -> "RoutingInput":
        """Some of the tokens."""
        return replace(
            self,
            logits=self.logits[rows],
            scores=self.scores[rows],
            tags=self.tags[rows],
            positions=self.positions[rows],
            request_ids=self.request_ids[rows],
            k=self.k[rows],
        )


@dataclass(frozen=True)
class RoutingDecision:
    """What a routing function makes of its input; None leaves a thing as it was.

    Attributes:
        scores: `[T, E]` fp32, finite, not negative, above 0 somewhere in each row. The model chooses by them, and
            weighs with them, as it does with its own; an expert with score 0 is not chosen.
        k: `[T]` whole numbers, or one for all: experts of each token, 1 to E. A token whose scores leave fewer has
            fewer.
    """

    scores: Tensor | None = None
    k: Tensor | int | None = None


@dataclass(frozen=True)
class ScoreChanges:
    """What functions have made of scores `[T, E]`.

    Attributes:
        rows: `[T]` bool, those with any other score, but for such as were not finite before.
        count: how many they are.
        faulty: one of them has a score that is not finite, a negative one, or none above 0.
        zeros: one of them has a score of 0: its expert is not to be chosen.
    """

    rows: Tensor
    count: int
    faulty: bool
    zeros: bool


class Look:
    """Looks at scores before and after, and answers its last question from memory: what a function gives is checked
    first, and is the decision where no other function comes.

    Args:
        kernel: `route_changes` of a backend.
    """

    def __init__(self, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._kernel = kernel
        self._last: tuple[Tensor, Tensor, ScoreChanges] | None = None

    def __call__(self, before: Tensor, after: Tensor) -> ScoreChanges:
        if self._last is None or self._last[0] is not before or self._last[1] is not after:
            found = torch.zeros(2, dtype=torch.int64, device=before.device)
            rows = self._kernel(before, after, found)
            count, bits = found.tolist()
            self._last = before, after, ScoreChanges(rows, count, bool(bits & FAULTS), bool(bits & ZEROS))
        return self._last[2]

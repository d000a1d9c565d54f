"""The recorder of routes: adds up where tokens go, for as long as it runs, and makes a `RouteProfile` of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesaic.experts.profile_file import RouteProfile

MAX_TAGS = 64  # of which counts are kept apart
ROWS = 1024  # tokens that are counted at once
MOST_PAIRS = np.iinfo(np.int32).max


@dataclass(eq=False)
class Rows:
    """Tokens of one sequence: `[T, L, k]` int16 ids and fp32 weights, and the tags of its request."""

    ids: NDArray[np.int16]
    weights: NDArray[np.float32]
    tags: Sequence[str]


@dataclass(eq=False)
class RouteRecorder:
    """Takes rows of tokens and counts them, some at a time. Its memory does not grow with the tokens.

    Args:
        layers, num_experts, top_k: of the model, as in `RouteProfile`.
        stream_tokens: the choices of so many tokens are kept one by one, besides.
    """

    model: str
    layers: list[int]
    num_experts: list[int]
    top_k: list[int]
    stream_tokens: int = 0
    tokens: int = 0
    tags: list[str] = field(default_factory=list)
    tokens_of_tags: list[int] = field(default_factory=list)
    tags_left_out: bool = False

    def __post_init__(self) -> None:
        self._experts = max(self.num_experts)
        shape = (1, len(self.layers), self._experts)
        self._counts = np.zeros(shape, dtype=np.int64)
        self._weights = np.zeros(shape, dtype=np.float64)
        self._pairs = np.zeros((len(self.layers), self._experts * (self._experts - 1) // 2), dtype=np.int64)
        expert = np.arange(self._experts)
        self._pairs_of = expert * (2 * self._experts - expert - 1) // 2 - expert - 1
        self._stream: list[NDArray[np.int16]] = []
        self._streamed = 0
        self._waiting: list[Rows] = []
        self._num_waiting = 0

    def add(self, rows: Rows) -> None:
        """Record the tokens of one sequence."""
        self.tokens += len(rows.ids)
        self._keep(rows.ids)
        self._waiting.append(rows)
        self._num_waiting += len(rows.ids)
        if self._num_waiting >= ROWS:
            self._count()

    def profile(self) -> RouteProfile:
        """All that was recorded so far."""
        self._count()
        width = max((ids.shape[2] for ids in self._stream), default=0)
        return RouteProfile(
            model=self.model,
            layers=self.layers,
            num_experts=self.num_experts,
            top_k=self.top_k,
            tags=list(self.tags),
            tokens=self.tokens,
            tokens_of_tags=list(self.tokens_of_tags),
            tags_left_out=self.tags_left_out,
            counts=self._counts,
            weights=self._weights,
            pairs=np.minimum(self._pairs, MOST_PAIRS).astype(np.int32),
            stream=np.concatenate([widened(ids, width, -1) for ids in self._stream]) if self._stream else None,
        )

    def _keep(self, ids: NDArray[np.int16]) -> None:
        """Keep the choices as they are, while there is room for them."""
        kept = ids[: self.stream_tokens - self._streamed]
        if len(kept):
            self._stream.append(kept)
            self._streamed += len(kept)

    def _count(self) -> None:
        """Count the rows that wait: of all requests, then of each tag."""
        if not self._waiting:
            return
        waiting, self._waiting, self._num_waiting = self._waiting, [], 0
        ids, weights = _joined(waiting)
        self._add(0, ids, weights)
        self._add_pairs(ids)
        of_tags: dict[str, list[Rows]] = {}
        for rows in waiting:
            for tag in dict.fromkeys(rows.tags):
                of_tags.setdefault(tag, []).append(rows)
        for tag, tagged in of_tags.items():
            place = self._place(tag)
            if place is not None:
                self.tokens_of_tags[place] += sum(len(rows.ids) for rows in tagged)
                self._add(1 + place, *_joined(tagged))

    def _place(self, tag: str) -> int | None:
        """Where a tag's counts are; None for one too many."""
        if tag not in self.tags:
            if len(self.tags) == MAX_TAGS:
                self.tags_left_out = True
                return None
            self.tags.append(tag)
            self.tokens_of_tags.append(0)
            self._counts = np.pad(self._counts, ((0, 1), (0, 0), (0, 0)))
            self._weights = np.pad(self._weights, ((0, 1), (0, 0), (0, 0)))
        return self.tags.index(tag)

    def _add(self, row: int, ids: NDArray[np.int16], weights: NDArray[np.float32]) -> None:
        """Count choices `[T, L, k]` and add up their weights."""
        shape = self._counts.shape[1:]
        places = (np.arange(shape[0])[:, None] * shape[1] + ids).ravel()
        carried = weights.ravel()
        if ids.min(initial=0) < 0:
            chosen = ids.ravel() >= 0
            places, carried = places[chosen], carried[chosen]
        size = shape[0] * shape[1]
        self._counts[row] += np.bincount(places, minlength=size).reshape(shape)
        self._weights[row] += np.bincount(places, carried, minlength=size).reshape(shape)

    def _add_pairs(self, ids: NDArray[np.int16]) -> None:
        """Count every pair of a token's choices `[T, L, k]`."""
        layers, pairs = self._pairs.shape
        first, second = np.triu_indices(ids.shape[2], 1)
        if not len(first):
            return
        a, b = ids[:, :, first], ids[:, :, second]  # [T, L, k (k - 1) / 2]
        low, high = np.minimum(a, b), np.maximum(a, b)
        places = self._pairs_of[low]  # of (low, 0), if there were such a pair
        places += high
        places += (np.arange(layers) * pairs)[:, None]
        flat = places[low >= 0] if low.min(initial=0) < 0 else places.ravel()
        self._pairs += np.bincount(flat, minlength=layers * pairs).reshape(layers, pairs)


def _joined(rows: Sequence[Rows]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Ids and weights of several sequences as one."""
    width = max(r.ids.shape[2] for r in rows)
    ids = np.concatenate([widened(r.ids, width, -1) for r in rows])
    return ids, np.concatenate([widened(r.weights, width, 0.0) for r in rows])


def widened(array: NDArray[np.generic], width: int, filler: float) -> NDArray[np.generic]:
    """`[T, L, k]` with places for `width` choices."""
    missing = width - array.shape[2]
    return np.pad(array, ((0, 0), (0, 0), (0, missing)), constant_values=filler) if missing else array

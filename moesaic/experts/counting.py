"""What kernels' counts do not tell: whose tokens were counted, and which of them had been counted before.

Kernels count all rows of a step. Of a step with rows of tagged requests, or of tokens that are computed again after a
preemption, the routes are read from the taps: the first are counted by tag besides, the others are taken back.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesaic.experts.load import Counts
from moesaic.experts.stats import ExpertStats

MOST_TAGS = 16  # of which counts are kept apart; all others are counted together
OTHER_TAGS = "(other tags)"
MOST_WAITING = 512  # tokens of tagged requests that wait to be counted together: each counting has its price


class Rows(NamedTuple):
    """Rows of a step that are one sequence's.

    Attributes:
        tags: of its request.
        first, num_tokens: rows [first, first + num_tokens).
        again: of these, how many from the first on had been computed before.
    """

    tags: Sequence[str]
    first: int
    num_tokens: int
    again: int


class Counting:
    """Counts of one model.

    Attributes:
        recomputed_tokens: tokens that were computed again, and are in no count twice.
    """

    def __init__(self, stats: ExpertStats) -> None:
        self.recomputed_tokens = 0
        self._stats = stats
        self._shape = tuple(stats.counts.shape)
        self._by_tag: dict[str, Counts] = {}
        self._waiting: dict[str, list[NDArray[np.int32]]] = {}
        self._num_waiting = 0
        rows = np.array([tap.row for tap in stats.taps], dtype=np.int64)
        self._offsets = (rows * (self._shape[1] + 1) + 1)[:, None, None]  # of a row's experts, with a place for -1

    def step(self, rows: Sequence[Rows], num_tokens: int) -> None:
        """Count the rows of a step that need more than the kernels did.

        Args:
            num_tokens: of the whole step.
        """
        ids = self._stats.stacked(num_tokens)  # [taps, T, k]
        for tags, first, length, again in rows:
            if again:
                self.recomputed_tokens += again
                taken = self._count(ids[:, first : first + again])
                self._stats.counts -= self._stats.counts.new_tensor(taken)
            new = ids[:, first + again : first + length]
            for tag in tags if new.shape[1] else ():
                self._waiting.setdefault(self._name(tag), []).append(new)
                self._num_waiting += new.shape[1]
        if self._num_waiting >= MOST_WAITING:
            self._settle()

    def by_tag(self) -> dict[str, Counts]:
        """`[rows, experts]` of each tag, as in `ExpertStats.counts`."""
        self._settle()
        return self._by_tag

    def _name(self, tag: str) -> str:
        if tag in self._by_tag or tag in self._waiting:
            return tag
        return tag if len(self._by_tag.keys() | self._waiting.keys()) < MOST_TAGS else OTHER_TAGS

    def _settle(self) -> None:
        for tag, parts in self._waiting.items():
            counted = self._by_tag.setdefault(tag, np.zeros(self._shape, dtype=np.int64))
            for part in _by_width(parts):
                counted += self._count(part)
        self._waiting, self._num_waiting = {}, 0

    def _count(self, ids: NDArray[np.int32]) -> Counts:
        """Choices `[taps, T, k]` by row and expert; ids that name no expert are none."""
        rows, experts = self._shape
        flat = (np.where((ids >= 0) & (ids < experts), ids, -1) + self._offsets).reshape(-1)
        counted: Counts = np.bincount(flat, minlength=rows * (experts + 1)).reshape(rows, experts + 1)[:, 1:]
        return counted


def _by_width(parts: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Parts with as many choices a token, joined."""
    widths = sorted({part.shape[2] for part in parts})
    return [np.concatenate([part for part in parts if part.shape[2] == width], axis=1) for width in widths]

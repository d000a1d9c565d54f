"""Where the tokens of a step went, taken from the taps of its routers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesaic.core.routes import RoutedTokens
from moesaic.core.step import Advance
from moesaic.experts.stats import ExpertStats


@dataclass(frozen=True, eq=False)
class StepRoutes:
    """Routes of some tokens of a step, copied: the taps hold them until the next step only.

    Attributes:
        layers: `[L]`, index of the decoder layer of each router.
        ids: `[T, L, k]` int16, -1 for none.
        weights: `[T, L, k]` fp32, 0 for none.
    """

    layers: list[int]
    ids: NDArray[np.int16]
    weights: NDArray[np.float32]

    def part(self, first: int, last: int, start: int) -> RoutedTokens:
        """Rows [first, last), which are tokens of one sequence from position `start` on.

        They have as many places as they use, whatever others in the batch do.
        """
        width = 1 + int(np.flatnonzero((self.ids[first:last] >= 0).any(axis=(0, 1))).max(initial=0))
        ids, weights = self.ids[first:last, :, :width], self.weights[first:last, :, :width]
        return RoutedTokens(
            self.layers, start, last - first, width, ids.astype("<i2").tobytes(), weights.astype("<f4").tobytes()
        )


def routes_of_step(stats: ExpertStats, num_tokens: int, rows: NDArray[np.int64] | None = None) -> StepRoutes | None:
    """What was chosen in the last step, of `num_tokens` tokens; None for a model without routers.

    Args:
        rows: of the step's tokens, those wanted; all by default.
    """
    if not stats.taps:
        return None
    chosen = list(stats.of_step(num_tokens))
    places = {tap.row: i for i, tap in enumerate(stats.taps)}
    width = max((ids.shape[1] for _, ids, _ in chosen), default=1)
    shape = (num_tokens if rows is None else len(rows), len(places), width)
    all_ids, all_weights = np.full(shape, -1, dtype=np.int16), np.zeros(shape, dtype=np.float32)
    for tap, ids, weights in chosen:
        i = places[tap.row]
        found, given = ids.detach().cpu().numpy(), weights.detach().float().cpu().numpy()
        if rows is not None:
            found, given = found[rows], given[rows]
        there = (found >= 0) & (found < tap.num_experts)  # others name no expert
        all_ids[:, i, : found.shape[1]] = np.where(there, found, -1)
        all_weights[:, i, : found.shape[1]] = np.where(there, given, 0)
    return StepRoutes([tap.layer for tap in stats.taps], all_ids, all_weights)


def rows_of(advance: list[Advance], wanted: set[int]) -> tuple[NDArray[np.int64], list[tuple[Advance, int, int]]]:
    """The rows of a step that are tokens of the wanted sequences, and of each of these its place among them.

    Returns:
        rows `[R]`, and (sequence, first, last) with which rows[first:last] are that sequence's.
    """
    parts: list[NDArray[np.int64]] = []
    places = []
    row = taken = 0
    for item in advance:
        if item.seq_id in wanted:
            parts.append(np.arange(row, row + item.num_tokens))
            places.append((item, taken, taken + item.num_tokens))
            taken += item.num_tokens
        row += item.num_tokens
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64), places

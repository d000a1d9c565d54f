"""Where the tokens of a step went, taken from the taps of its routers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesaic.core.routes import RoutedTokens
from moesaic.core.step import Advance
from moesaic.experts.stats import ExpertStats, Tap


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
    if len(chosen) == len(stats.taps) and len({ids.shape[1] for _, ids, _ in chosen}) == 1:
        ids, weights = (torch.stack(parts, 1) for parts in list(zip(*chosen, strict=True))[1:])
    else:
        ids, weights = _stacked(stats, chosen, num_tokens)
    if rows is not None:
        picked = torch.from_numpy(rows).to(ids.device)
        ids, weights = ids[picked], weights[picked]
    found, given = ids.detach().cpu().numpy(), weights.detach().float().cpu().numpy()
    experts = np.array([tap.num_experts for tap in stats.taps])[:, None]
    there = (found >= 0) & (found < experts)  # others name no expert
    layers = [tap.layer for tap in stats.taps]
    return StepRoutes(layers, np.where(there, found, -1).astype(np.int16), np.where(there, given, np.float32(0)))


def _stacked(stats: ExpertStats, chosen: list[tuple[Tap, Tensor, Tensor]], num_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and weights `[T, L, k]` of routers with different k, or of which some have nothing to say."""
    places = {tap.row: i for i, tap in enumerate(stats.taps)}
    width = max((ids.shape[1] for _, ids, _ in chosen), default=1)
    device = stats.counts.device
    all_ids = torch.full((num_tokens, len(places), width), -1, dtype=torch.int32, device=device)
    all_weights = torch.zeros((num_tokens, len(places), width), device=device)
    for tap, ids, weights in chosen:
        all_ids[:, places[tap.row], : ids.shape[1]] = ids
        all_weights[:, places[tap.row], : ids.shape[1]] = weights
    return all_ids, all_weights


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

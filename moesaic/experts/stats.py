"""What routers tell of the tokens they route: how many each expert got, and the routes of the last step.

Every router of a model, wherever it is, has a `Tap` here: a row of the counts, to which its kernel adds, and a place
for the ids and weights that it chose last. Counting by tag, recording and returning routes read these after a step,
whichever way the step was computed.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from moesaic.experts.routing import Routing

Part = Literal["ffn", "attention"]


class Tap:
    """One router's place in the statistics.

    Attributes:
        row: of `ExpertStats.counts` and of `ExpertStats.routes`.
        layer: index of the decoder layer.
        part: what the experts are: feed-forwards, or attention's projections.
        num_experts, top_k: of the router; top_k is what the model has, whatever a request asks for.
        counts: `[E]` int64, a view that stays where it is; None where nothing is counted.
        tally: `[2]` int64, likewise: its row of `ExpertStats.tallies`.
    """

    def __init__(self, stats: "ExpertStats", row: int, layer: int, part: Part, num_experts: int, top_k: int) -> None:
        self.row, self.layer, self.part = row, layer, part
        self.num_experts, self.top_k = num_experts, top_k
        self.counts = stats.counts[row, :num_experts] if stats.enabled else None
        self.tally = stats.tallies[row] if stats.enabled else None
        self._stats = stats

    def note(self, routing: "Routing") -> None:
        """Keep what was chosen for the tokens of this step, until the next step."""
        if self.counts is not None:
            self._stats.routes[self.row] = routing


class ExpertStats:
    """The taps of a model.

    Attributes:
        counts: `[rows, experts]` int64, tokens routed to each expert since the start, on the model's device (0 where a
            row has no router). A decoder's row i is of the feed-forward of layer i; of a layer with a second router,
            that one's row stands behind those of all layers.
        tallies: `[rows, 2]` int64, by row: rows routed to feed-forward experts, and rows of the whole blocks that
            kernels computed them in. What is computed again counts again.
        routes: by row, what was chosen in the last step. In a replayed step the tensors are the recording's own, of
            which the first rows are the step's; `of_step` cuts them.
        taps: of the rows that have a router, in the order of the layers.
        enabled: false where a benchmark wants to know what all this costs: models built then count nothing.
    """

    enabled: ClassVar[bool] = True

    def __init__(self, num_layers: int, num_experts: int, device: torch.device, num_more: int = 0) -> None:
        self.num_layers = num_layers
        self.counts = torch.zeros(num_layers + num_more, num_experts, dtype=torch.int64, device=device)
        self.tallies = torch.zeros(len(self.counts), 2, dtype=torch.int64, device=device)
        self.routes: list[Routing | None] = [None] * len(self.counts)
        self.taps: list[Tap] = []

    def tap(self, layer: int, num_experts: int, top_k: int, part: Part = "ffn", row: int | None = None) -> Tap:
        """A row for a router.

        Args:
            layer: index of its decoder layer.
            row: another than the layer's own, or the next behind all layers' where that one is taken.
        """
        taken = {tap.row for tap in self.taps}
        if row is None:
            row = next(row for row in (layer, *range(self.num_layers, len(self.counts))) if row not in taken)
        tap = Tap(self, row, layer, part, num_experts, top_k)
        self.taps.append(tap)
        self.taps.sort(key=lambda tap: (tap.layer, tap.part == "ffn"))
        return tap

    def of_step(self, num_tokens: int) -> Iterator[tuple[Tap, Tensor, Tensor]]:
        """Each router with the ids `[T, k]` int32 and weights `[T, k]` fp32 that it chose in the last step.

        An unused choice has id -1 and weight 0; `k` is the widest of the step's requests.

        Args:
            num_tokens: of the step's batch.
        """
        for tap in self.taps:
            routing = self.routes[tap.row]
            if routing is not None:
                yield tap, routing.ids[:num_tokens], routing.weights[:num_tokens]

    def stacked(self, num_tokens: int) -> NDArray[np.int32]:
        """The ids that all routers chose in the last step, `[taps, T, k]` in the order of `taps`: a copy.

        Where some choose fewer than others, the choices that they lack are -1.
        """
        routes = [self.routes[tap.row] for tap in self.taps]
        ids = [routing.ids for routing in routes if routing is not None]
        width = max((part.shape[1] for part in ids), default=0)
        if len(ids) == len(routes) and len({part.shape for part in ids}) == 1:
            same: NDArray[np.int32] = torch.stack(ids)[:, :num_tokens].numpy(force=True)
            return same
        out = np.full((len(routes), num_tokens, width), -1, dtype=np.int32)
        for i, routing in enumerate(routes):
            if routing is not None:
                out[i, :, : routing.ids.shape[1]] = routing.ids[:num_tokens].numpy(force=True)
        return out

    def learn(self) -> None:
        """After a trial of code that is not ours: how many experts its tokens have, from what was chosen; routers that
        did not ask us keep no tap."""
        routes = {tap: self.routes[tap.row] for tap in self.taps}
        self.taps = [tap for tap, routing in routes.items() if routing is not None]
        for tap, routing in routes.items():
            tap.top_k = routing.ids.shape[1] if routing is not None else 0

    def reset(self) -> None:
        """Start from zero."""
        self.counts.zero_()
        self.tallies.zero_()
        self.routes[:] = [None] * len(self.routes)


def joined(parts: "Sequence[list[Routing | None]]") -> "list[Routing | None]":
    """The routes of a step that was computed in parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return [None if None in of_row else _cat(of_row) for of_row in zip(*parts, strict=True)]


def _cat(routings: "Sequence[Routing]") -> "Routing":
    return type(routings[0])(
        torch.cat([routing.ids for routing in routings]), torch.cat([routing.weights for routing in routings])
    )

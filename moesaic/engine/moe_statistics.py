"""Statistics of a running engine's experts: always on, a few microseconds a step.

Kernels count every routed row (`experts.stats`). A token is counted once, when it is first computed: one that is
computed again after a preemption is taken back, and one found in the prefix cache was counted for the request that
computed it. docs/statistics.md defines all figures.
"""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import numpy as np
from torch import nn

from moesaic.core.errors import RequestError, unknown_name
from moesaic.core.messages import LayerSummary, MoeSummary
from moesaic.core.routing import RequestRouting
from moesaic.core.step import StepPlan
from moesaic.experts import load
from moesaic.experts.counting import Counting, Rows
from moesaic.experts.load import Counts
from moesaic.experts.stats import ExpertStats, Tap
from moesaic.experts.store import ExpertPages
from moesaic.experts.windows import NAMES, START, Windows

SUMMARY_SECONDS = 1.0
SUMMARY_WINDOW = "1m"
ALL = ""  # name of the counts of all tokens; tags have at least one letter


class MoeStatistics:
    """Counts by layer, expert and tag, over windows.

    Args:
        stats: of the model.
        routings: what live sequences ask of their routes, by id; of those that ask for anything.
        clock: monotonic seconds.
    """

    def __init__(
        self, stats: ExpertStats, routings: Mapping[int, RequestRouting], clock: Callable[[], float] = monotonic
    ) -> None:
        self._stats, self._routings, self._clock = stats, routings, clock
        self._on = bool(stats.taps) and stats.enabled
        self._counting = Counting(stats)
        self._windows = Windows(self._totals, clock)
        self._tallies = Windows(lambda: {ALL: stats.tallies.numpy(force=True)}, clock)
        self._last_summary = clock() - SUMMARY_SECONDS

    def _totals(self) -> dict[str, Counts]:
        return {ALL: self._stats.counts.numpy(force=True), **self._counting.by_tag()}

    def before_step(self) -> None:
        """Called before the model computes."""
        if self._on:
            self._windows.changing()
            self._tallies.changing()

    def after_step(self, plan: StepPlan) -> None:
        """Called when a plan was computed, before it is booked."""
        if not self._on or not plan.advance:
            return
        rows = self._rows(plan)
        if rows:
            self._counting.step(rows, plan.num_tokens)
        self._windows.changed()
        self._tallies.changed()

    def _rows(self, plan: StepPlan) -> list[Rows]:
        """The rows of sequences with tags, and of those that compute tokens again."""
        found, first = [], 0
        for item in plan.advance:
            routing = self._routings.get(item.seq_id)
            tags = routing.tags if routing is not None else ()
            if item.again or tags:
                found.append(Rows(tags, first, item.num_tokens, item.again))
            first += item.num_tokens
        return found

    @property
    def due(self) -> bool:
        """Whether the last summary was given a second ago."""
        return self._clock() - self._last_summary >= SUMMARY_SECONDS

    def summary(self) -> MoeSummary:
        """What dashboards and metrics follow."""
        self._last_summary = self._clock()
        seconds, counted = self._windows.counted(SUMMARY_WINDOW)
        totals, tallies = self._stats.counts.numpy(force=True), self._tallies.counted(SUMMARY_WINDOW)[1][ALL]
        return MoeSummary(
            time=self._last_summary,
            seconds=seconds,
            layers=[_summary(tap, counted[ALL], totals, tallies) for tap in self._stats.taps],
            compute_efficiency=_efficiency(tallies.sum(0)),
            recomputed_tokens_total=self._counting.recomputed_tokens,
        )

    def experts(self, window: str = START, tag: str = ALL) -> dict[str, Any] | None:
        """Each layer's counts and figures in a window, of all tokens or of those with a tag; None without experts.

        Raises:
            RequestError: there is no such window.
        """
        if window not in NAMES:
            raise RequestError(f"{unknown_name('window', window, NAMES)}: there are {', '.join(NAMES)}", "window")
        if not self._stats.taps:
            return None
        seconds, counted = self._windows.counted(window)
        tokens, tallies = counted.get(tag), self._tallies.counted(window)[1][ALL]
        layers = [_layer(tap, _of_tap(tap, tokens)) for tap in self._stats.taps]
        return {
            "window": window,
            "seconds": seconds,
            "tag": tag or None,
            "tags": sorted(name for name in counted if name != ALL),
            "layers": layers,
            "totals": {
                "tokens": sum(sum(layer["tokens"]) for layer in layers),
                "dead": sum(len(layer["dead"]) for layer in layers),
                **{name: _mean(layers, name) for name in ("utilization", "imbalance", "entropy")},
                "compute_efficiency": _efficiency(tallies.sum(0)),
                "recomputed_tokens": self._counting.recomputed_tokens,
            },
        }


def _efficiency(tally: Counts) -> float | None:
    return load.share(int(tally[0]), int(tally[1]))


def _of_tap(tap: Tap, counts: Counts | None) -> Counts:
    return np.zeros(tap.num_experts, np.int64) if counts is None else counts[tap.row, : tap.num_experts]


def _summary(tap: Tap, counted: Counts, totals: Counts, tallies: Counts) -> LayerSummary:
    tokens = _of_tap(tap, counted)
    return LayerSummary(
        layer=tap.layer,
        part=tap.part,
        utilization=load.utilization(tokens),
        imbalance=load.imbalance(tokens),
        entropy=load.entropy(tokens),
        dead=len(load.dead(tokens)),
        compute_efficiency=_efficiency(tallies[tap.row]),
        tokens_total=int(_of_tap(tap, totals).sum()),
    )


def _layer(tap: Tap, tokens: Counts) -> dict[str, Any]:
    """One layer as JSON has it."""
    return {
        "layer": tap.layer,
        "part": tap.part,
        "num_experts": tap.num_experts,
        "top_k": tap.top_k,
        "tokens": tokens.tolist(),
        "utilization": load.utilization(tokens),
        "imbalance": load.imbalance(tokens),
        "entropy": load.entropy(tokens),
        "dead": load.dead(tokens),
    }


def _mean(layers: list[dict[str, Any]], figure: str) -> float | None:
    values = [layer[figure] for layer in layers if layer[figure] is not None]
    return sum(values) / len(values) if values else None


def expert_memory(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's expert pages: set aside, and of these filled by weights."""
    pages = [module.memory for module in model.modules() if isinstance(module, ExpertPages)]
    return sum(allocated for allocated, _ in pages), sum(filled for _, filled in pages)

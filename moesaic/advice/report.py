"""The report: what should change, and the figures of what should not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.advice.branches import BRANCHES
from moesaic.advice.exposition import Metrics
from moesaic.advice.figures import Figures
from moesaic.advice.reading import figures_of
from moesaic.advice.tree import Finding, Outcome, walk

WINDOW = "1h"  # of what experts did: long enough to be no chance, short enough to be of now


@dataclass(frozen=True)
class Report:
    """Advice for one server.

    Attributes:
        traffic: a line that says what it has done so far.
        has_traffic: whether it has served anything; without, figures say nothing.
    """

    model: str
    traffic: str
    has_traffic: bool
    outcomes: Sequence[Outcome]

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]


def advise(metrics: str, experts: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None) -> Report:
    """Walk the tree on a server's figures.

    Args:
        metrics: the text of its /metrics.
        experts: the reply of `GET /v1/moe/experts`, if there is one.
        status: the reply of `GET /v1/moe/status`, likewise.

    Raises:
        ConfigError: these are no metrics of a moesaic server.
    """
    figures = figures_of(Metrics(metrics), experts, status)
    has_traffic = figures.generated_tokens > 0
    outcomes = [walk(branch, figures) for branch in BRANCHES] if has_traffic else []
    return Report(figures.model, _traffic(figures), has_traffic, outcomes)


def _traffic(f: Figures) -> str:
    if f.generated_tokens == 0:
        return "no tokens generated yet"
    cached = f", {f.prefix_hits:,} prompt tokens found in the prefix cache" if f.prefix_hits else ""
    return (
        f"{f.prompt_tokens:,} prompt and {f.generated_tokens:,} generated tokens, {f.finished:,} completions{cached}; "
        f"now {f.running} running, {f.waiting} waiting"
    )

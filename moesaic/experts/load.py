"""How a layer's tokens spread over its experts: the definitions, of which docs/statistics.md tells the story.

All are of the tokens `n[e]` that each of a layer's N experts got in some window; a token with k experts counts k times.
Where nothing came, there is nothing to say: None.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def utilization(tokens: Counts) -> float:
    """Share of the experts that got a token: `|{e: n[e] > 0}| / N`."""
    return float(np.count_nonzero(tokens) / len(tokens))


def imbalance(tokens: Counts) -> float | None:
    """Tokens of the busiest expert over the mean: `max n / mean n`; 1 is even, N is one expert alone."""
    return float(tokens.max() / tokens.mean()) if tokens.any() else None


def entropy(tokens: Counts) -> float | None:
    """Routing entropy `H / log N` with `H = -sum p log p`, `p = n / sum n`: 1 is even, 0 is one expert alone."""
    if not tokens.any():
        return None
    if len(tokens) == 1:
        return 1.0
    p = tokens[tokens > 0] / tokens.sum()
    return float(max(0.0, -(p * np.log(p)).sum() / np.log(len(tokens))))


def dead(tokens: Counts) -> list[int]:
    """Experts without a token, in a layer that got some."""
    return np.flatnonzero(tokens == 0).tolist() if tokens.any() else []


def share(part: float, whole: float) -> float | None:
    """`part / whole`; None of nothing."""
    return part / whole if whole else None

"""The oracle's sampling, in numpy on the host: from logits to tokens.

Each row is decided by itself: its draw depends on its logits, parameters, seed and position alone, never on who shares
the batch, nor on how often it was preempted.

A weight is a multiple of 2^-31 and at most 1, so that sums of weights are exact in float64, in any order: no way to
compute these definitions can come to another token.
"""

from dataclasses import dataclass
from math import isfinite, nextafter

import numpy as np
import numpy.typing as npt
import torch

from moesaic.core.request import LogprobRow
from moesaic.core.sampling_params import SamplingParams

NUCLEUS_CANDIDATES = (64, 1024)  # top-p sorts so many best tokens before it sorts all
FINEST = 2.0**-31  # a weight is a multiple of it
MOST_TEMPERATURE = 1e30

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(slots=True)
class SamplingRow:
    """What one row of logits needs to become a token.

    Attributes:
        token_ids: `[length]`, prompt and output so far (read only when a penalty asks).
        stop_token_ids: cannot be drawn before min_tokens.
    """

    params: SamplingParams
    seed: int
    prompt_len: int
    token_ids: Tokens
    stop_token_ids: list[int]

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len


def sample(logits: Logits, rows: list[SamplingRow]) -> list[int | None]:
    """Choose one token a row.

    Args:
        logits: `[N, V]` float32; changed in place where a row's parameters ask for it.
        rows: N of them.

    Returns:
        N token ids; None for a row whose logits are not finite.
    """
    for i, row in enumerate(rows):
        if _adjusts(row):
            adjust(logits[i], row)
    best = logits.argmax(axis=-1)  # of a row with NaN, the NaN
    highest = logits[np.arange(len(rows)), best]
    tokens: list[int | None] = [
        token if isfinite(value) else None for token, value in zip(best.tolist(), highest.tolist(), strict=True)
    ]
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy and tokens[i] is not None]
    for i, (kept, weights) in zip(drawn, _weights(logits, highest, rows, drawn), strict=True):
        place = draw(weights, rows[i])
        tokens[i] = place if kept is None else int(kept[place])
    return tokens


def _adjusts(row: SamplingRow) -> bool:
    """Whether `adjust` has anything to do for this row."""
    p = row.params
    penalised = p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0
    return penalised or bool(p.logit_bias) or row.num_generated < p.min_tokens


def adjust(logits: Logits, row: SamplingRow) -> None:
    """Apply bias, penalties and min_tokens to one row `[V]`, in place."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(row.token_ids)
        values = logits[seen]
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated, counts = np.unique(row.token_ids[row.prompt_len :], return_counts=True)
        logits[generated] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), dtype=np.float32)
    if row.num_generated < params.min_tokens:
        logits[row.stop_token_ids] = -np.inf


def _weights(
    logits: Logits, highest: Logits, rows: list[SamplingRow], wanted: list[int]
) -> list[tuple[Tokens | None, Weights]]:
    """For each wanted row the ids that top-k keeps (None for all) and their weights, in vocabulary order.

    A weight is e^((logit - highest) / temperature), so the largest is 1. Rows with a top-k are done together, which
    only saves calls: each keeps whatever reaches its own k-th largest logit, so how ties are ordered never matters.

    Args:
        highest: `[N]`, each row's largest logit.
    """
    vocab_size = logits.shape[-1]
    limited = [i for i in wanted if 0 < rows[i].params.top_k < vocab_size]
    found = dict(
        zip(limited, _top_k(logits[limited], highest[limited], [rows[i].params for i in limited]), strict=True)
    )
    for i in wanted:
        if i not in found:
            found[i] = None, exponential((logits[i] - highest[i]) * inverse(rows[i].params))
    return [found[i] for i in wanted]


def inverse(params: SamplingParams) -> np.float32:
    """What differences of logits are multiplied by."""
    return np.float32(1.0) / np.float32(min(params.temperature, MOST_TEMPERATURE))


def exponential(x: Logits) -> Weights:
    """e^x for x <= 0, to about 2 ulp of float32, rounded to a multiple of FINEST.

    Cephes' expf, each product and sum rounded by itself, so that every instruction set comes to the same bits.
    """
    f = np.float32
    x = np.maximum(x, f(-40.0))
    n = np.rint(x * f(1.44269504088896341))
    r = (x - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = np.full_like(r, f(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(c)
    p = p * (r * r) + (r + f(1.0))
    weights: Weights = np.ldexp(p, n.astype(np.int32)).astype(np.float64)
    weights = np.rint(weights / FINEST) * FINEST
    return weights


def _top_k(logits: Logits, highest: Logits, params: list[SamplingParams]) -> list[tuple[Tokens | None, Weights]]:
    """`_weights` of rows that all have a top-k below the vocabulary's size."""
    if not params:
        return []
    num_rows, vocab_size = logits.shape
    k = np.array([p.top_k for p in params])
    most = int(k.max())
    best = np.partition(logits, vocab_size - most, axis=1)[:, vocab_size - most :]
    best.sort(axis=1)  # rising
    threshold = best[np.arange(num_rows), most - k]
    flat = (logits >= threshold[:, None]).ravel().nonzero()[0]
    owner = flat // vocab_size
    factors = np.array([inverse(p) for p in params])
    weights = exponential((logits.ravel()[flat] - highest[owner]) * factors[owner])
    ids = flat - owner * vocab_size
    ends = owner.searchsorted(np.arange(1, num_rows + 1)).tolist()
    return [(ids[start:end], weights[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def draw(weights: Weights, row: SamplingRow) -> int:
    """Apply top-p and min-p to the weights (in place), and draw one's place by the inverse CDF in their order."""
    threshold = max(_nucleus_threshold(weights, row.params.top_p), row.params.min_p)
    if threshold > 0.0:
        weights[weights < threshold] = 0.0
    cumulative = weights.cumsum()
    total = float(cumulative[-1])
    target = min(uniform_draw(row.seed, row.num_generated) * total, nextafter(total, 0.0))
    return int(cumulative.searchsorted(target, side="right"))  # never one of weight 0


def _nucleus_threshold(weights: Weights, top_p: float) -> float:
    """The smallest weight of the nucleus: of the fewest tokens whose share reaches top_p (Holtzman et al. 2020)."""
    if top_p >= 1.0:
        return 0.0
    mass = top_p * float(weights.sum())
    for size in (*NUCLEUS_CANDIDATES, len(weights)):
        best = np.partition(weights, -size)[-size:] if size < len(weights) else weights.copy()
        best.sort()
        cumulative = best[::-1].cumsum()  # from the largest on
        if cumulative[-1] >= mass or size >= len(weights):
            break
    return float(best[max(0, len(best) - 1 - int(cumulative.searchsorted(mass)))])


def uniform_draw(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on these two alone: SplitMix64 (Steele et al. 2014) of their mix."""
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) & mask
    for _ in range(2):
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return (x >> 11) * 2.0**-53


def logprob_rows(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log-probabilities of raw logits: each row's own token first, then its `count` best, best first, equals by id.

    Args:
        logits: `[N, V]` float32, before any parameter was applied.
    """
    logprobs = logits.log_softmax(dim=-1)
    own = torch.tensor(token_ids, device=logits.device)[:, None]
    own_logprobs = logprobs.gather(1, own)[:, 0].tolist()
    ranks = ((logits > logits.gather(1, own)).sum(dim=-1) + 1).tolist()
    most = min(max(counts), logits.shape[-1])
    least = logits.topk(most, dim=-1).values[:, -1] if most else None
    rows = []
    for i, count in enumerate(counts):
        best: list[int] = []
        if least is not None:
            reaching = (logits[i] >= least[i]).nonzero()[:, 0]  # topk promises no order of equals, a stable sort does
            best = reaching[logits[i, reaching].argsort(descending=True, stable=True)][:count].tolist()
        rows.append(logprob_row(token_ids[i], own_logprobs[i], ranks[i], best, logprobs[i, best].tolist()))
    return rows


def logprob_row(token: int, logprob: float, rank: int, best: list[int], values: list[float]) -> LogprobRow:
    """A row's own token, then the best that are others."""
    row = LogprobRow([token], [logprob], [rank])
    for place, (other, value) in enumerate(zip(best, values, strict=True), start=1):
        if other != token:
            row.token_ids.append(other)
            row.logprobs.append(value)
            row.ranks.append(place)
    return row

"""From logits to tokens. Each row is decided by itself: its draw depends on its logits, parameters, seed and
position alone, never on who shares the batch, nor on how often it was preempted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from moesaic.core.request import LogprobRow
from moesaic.core.sampling_params import SamplingParams

NOT_FINITE = "the model's logits are not finite (NaN or infinity): see its dtype and weights"
NUCLEUS_CANDIDATES = (64, 1024)  # top-p looks among so many best tokens before it sorts the whole vocabulary


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
    token_ids: npt.NDArray[np.int64]
    stop_token_ids: list[int]

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int | None]:
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
    best, tokens = logits.max(dim=-1)
    chosen: list[int | None] = tokens.tolist()
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        part = logits if len(drawn) == len(rows) else logits[drawn]
        for i, token in zip(drawn, _draw(part, [rows[i] for i in drawn]), strict=True):
            chosen[i] = token
    if not bool(torch.isfinite(best).all()):
        chosen = [t if ok else None for t, ok in zip(chosen, torch.isfinite(best).tolist(), strict=True)]
    return chosen


def _adjusts(row: SamplingRow) -> bool:
    """Whether `adjust` has anything to do for this row."""
    p = row.params
    penalised = p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0
    return penalised or bool(p.logit_bias) or row.num_generated < p.min_tokens


def adjust(logits: torch.Tensor, row: SamplingRow) -> None:
    """Apply bias, penalties and min_tokens to one row `[V]`, in place."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(row.token_ids)).to(logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated, counts = np.unique(row.token_ids[row.prompt_len :], return_counts=True)
        penalties = params.presence_penalty + params.frequency_penalty * counts
        logits[torch.from_numpy(generated)] -= torch.from_numpy(penalties).to(logits)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values())).to(logits)
    if row.stop_token_ids and row.num_generated < params.min_tokens:
        logits[row.stop_token_ids] = -torch.inf


def _draw(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    """Inverse-CDF draws in vocabulary order. The filters keep whatever reaches a threshold value, so how ties
    are ordered by a sort never matters."""
    logits = logits / _column(logits, rows, lambda p: p.temperature)
    for keep, wanted in ((_top_k, _wants_top_k), (_top_p, _wants_top_p), (_min_p, _wants_min_p)):
        indices = [i for i, row in enumerate(rows) if wanted(row.params)]
        if len(indices) == len(rows):
            logits = logits.masked_fill(logits < keep(logits, rows), -torch.inf)
        elif indices:
            part = logits[indices]
            logits[indices] = part.masked_fill(part < keep(part, [rows[i] for i in indices]), -torch.inf)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)  # [N, V]
    uniform = [uniform_draw(row.seed, row.num_generated) for row in rows]
    target = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)
    return [int(token) for token in tokens[:, 0].clamp(max=logits.shape[-1] - 1).tolist()]


def _wants_top_k(params: SamplingParams) -> bool:
    return params.top_k > 0


def _wants_top_p(params: SamplingParams) -> bool:
    return params.top_p < 1.0


def _wants_min_p(params: SamplingParams) -> bool:
    return params.min_p > 0.0


def _top_k(logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
    """`[n, 1]`: each row's k-th largest logit."""
    k = [min(row.params.top_k, logits.shape[-1]) for row in rows]
    values = logits.topk(max(k), dim=-1).values
    return values.gather(1, torch.tensor(k, device=logits.device)[:, None] - 1)


def _top_p(logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
    """`[n, 1]`: the smallest logit of each row's nucleus (Holtzman et al. 2020)."""
    top_p = _column(logits, rows, lambda p: p.top_p)
    total = logits.logsumexp(dim=-1, keepdim=True)
    for size in (*NUCLEUS_CANDIDATES, logits.shape[-1]):
        size = min(size, logits.shape[-1])
        values = logits.topk(size, dim=-1).values  # [n, size], falling
        before = (values - total).exp().cumsum(dim=-1, dtype=torch.float64)
        if bool((before[:, -1] >= top_p[:, 0]).all()):
            break
    count = (before < top_p).sum(dim=-1, keepdim=True)  # tokens before the one that crosses top_p
    return values.gather(1, count.clamp(max=size - 1))


def _min_p(logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
    """`[n, 1]`: the logit of a token min_p times as likely as the likeliest."""
    return logits.amax(dim=-1, keepdim=True) + _column(logits, rows, lambda p: p.min_p).log()


def _column(logits: torch.Tensor, rows: list[SamplingRow], value: Callable[[SamplingParams], float]) -> torch.Tensor:
    """`[N, 1]` float32: one parameter of each row."""
    return torch.tensor([value(row.params) for row in rows], dtype=torch.float32, device=logits.device)[:, None]


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
    """Log-probabilities of raw logits: each row's own token first, then its `count` best, best first.

    Args:
        logits: `[N, V]` float32, before any parameter was applied.
    """
    logprobs = logits.log_softmax(dim=-1)
    own = torch.tensor(token_ids, device=logits.device)[:, None]
    own_logprobs = logprobs.gather(1, own)  # [N, 1]
    ranks = ((logprobs > own_logprobs).sum(dim=-1) + 1).tolist()
    best = logprobs.topk(min(max(counts), logits.shape[-1]), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    rows = []
    for i, count in enumerate(counts):
        row = LogprobRow([token_ids[i]], [own_logprobs[i, 0].item()], [ranks[i]])
        for rank, (token, value) in enumerate(zip(ids[i][:count], values[i][:count], strict=True), start=1):
            if token != token_ids[i]:
                row.token_ids.append(token)
                row.logprobs.append(value)
                row.ranks.append(rank)
        rows.append(row)
    return rows

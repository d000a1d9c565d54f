"""The oracle's router, in plain torch: one function whose options cover the routers of published MoE models."""

from dataclasses import replace
from time import perf_counter
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.kernels.route_table import RouteTable, Rule

Scoring = Literal["softmax", "sigmoid", "sqrt_softplus", "identity", "sparsemixer"]
Order = Literal["score_then_select", "select_then_score"]
GroupScore = Literal["top2", "max"]

LOWEST = torch.finfo(torch.float32).min
FAULTS, ZEROS = 7, 8  # of scores: with these none can be chosen by them; some experts are not to be chosen
_spent = [0.0]  # seconds in `route`


def route(
    logits: Tensor,
    top_k: int,
    scoring: Scoring = "softmax",
    order: Order = "score_then_select",
    renormalize: bool = False,
    bias: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: GroupScore = "top2",
    masked_score: float = float("-inf"),
    epsilon: float = 0.0,
    floor: float = 0.0,
    scale: float = 1.0,
    cap: float | None = None,
    expert_scale: Tensor | None = None,
    counts: Tensor | None = None,
    choice: Tensor | None = None,
    jitter: float = 0.0,
    table: RouteTable | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token and weigh them, in fp32.

    Without a bias or groups the choice is made on the logits, as every scoring rises with them; equals go to the
    lowest id. For the choice NaN counts as the best there is, so that ids are always valid.

    Args:
        logits: `[T, E]`.
        scoring: of a logit; "sqrt_softplus" is `sqrt(log(1 + e^x))`; "sparsemixer" (Liu et al. 2024, arXiv:2409.12136)
            weighs the i-th chosen with a softmax over those that are not chosen before it and not far below it.
        order: "score_then_select" scores all experts and keeps the best; "select_then_score" keeps the best logits
            and scores these alone (which matters for a softmax, and for what a bias is added to).
        renormalize: divide the kept scores by `max(sum + epsilon, floor)`.
        bias: `[E]`, added for the choice alone (Wang et al. 2024); weights come from the unbiased scores.
        num_groups, top_groups: experts are cut into groups of consecutive ids, of which the best are kept
            (DeepSeek-V2 and V3); experts outside count as `masked_score` (-inf; 0 in some models).
        group_score: a group's "max", or the sum of its "top2".
        scale: of the weights, after renormalising.
        cap: logits become `cap * tanh(logits / cap)` first.
        expert_scale: `[E]`, multiplies the weight of each expert.
        counts: `[E]` int64, to which the number of tokens that each expert was chosen for is added.
        choice: `[T, E]`, what the choice is made on, whatever logits and bias say.
        jitter: of "sparsemixer": half the relative distance from which on a logit is far below another.
        table: rules of rows that choose otherwise: their logits are changed and their banned experts' are -inf, which
            are never chosen and add nothing to their group's score; a row that chooses fewer than top_k experts has
            -1 for the others, and weights of 0.

    Returns:
        ids `[T, k]` int32, best first, and weights `[T, k]` fp32.
    """
    start = perf_counter()
    options = (
        *(scoring, order, renormalize, bias, num_groups, top_groups, group_score, masked_score),
        *(epsilon, floor, scale, cap, expert_scale, choice, jitter),
    )
    if table is None or not table.active:
        ids, weights = _route(Rule(top_k), logits, *options)
    else:
        ids = torch.full((len(logits), top_k), -1, device=logits.device)
        weights = torch.zeros(len(logits), top_k, device=logits.device)
        for number in table.rows.used:
            rows, rule = table.rows.rows_of(number, logits.device), table.rules[number]
            rule = replace(rule, top_k=min(rule.top_k, top_k))
            given = logits.index_select(0, rows)
            some_ids, some_weights = _route(
                rule, given, *options[:-2], None if choice is None else choice[rows], jitter
            )
            ids[rows, : some_ids.shape[1]], weights[rows, : some_ids.shape[1]] = some_ids, some_weights
    if counts is not None:
        counts += torch.bincount(ids[ids >= 0], minlength=counts.shape[0])
    if choice is None:
        _spent[0] += perf_counter() - start
    return ids.int(), weights


def _route(
    rule: Rule,
    logits: Tensor,
    scoring: Scoring,
    order: Order,
    renormalize: bool,
    bias: Tensor | None,
    num_groups: int,
    top_groups: int,
    group_score: GroupScore,
    masked_score: float,
    epsilon: float,
    floor: float,
    scale: float,
    cap: float | None,
    expert_scale: Tensor | None,
    choice: Tensor | None,
    jitter: float,
) -> tuple[Tensor, Tensor]:
    """Ids `[T, k]` and weights `[T, k]` of rows with one rule."""
    logits = _capped(rule.logits(logits), cap)
    if rule.banned is not None:
        logits = logits.masked_fill(rule.banned, float("-inf"))
    if choice is None:
        by_score = order == "score_then_select" and (bias is not None or num_groups > 1)
        choice = _score(logits, scoring) if by_score else logits
        choice = choice if bias is None else choice + bias
    choice = _banned(_comparable(choice.float()), rule.banned)
    if num_groups > 1:
        choice = _banned(_mask_groups(choice, num_groups, top_groups, group_score, masked_score), rule.banned)
    left = choice.shape[1] if rule.banned is None else int((~rule.banned).sum())
    ids = _best(choice, min(rule.top_k, left))
    if scoring == "sparsemixer":
        weights = _sparsemixer(logits, ids, jitter)
    elif order == "score_then_select":
        weights = _score(logits, scoring).gather(1, ids)
    else:
        weights = _score(logits.gather(1, ids), scoring)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + epsilon).clamp(min=floor)
    weights = weights * scale
    if expert_scale is not None:
        weights = weights * expert_scale[ids]
    return ids, weights


def route_scores(logits: Tensor, scoring: Scoring = "softmax", cap: float | None = None) -> Tensor:
    """What `route` scores all experts with: `[T, E]` -> `[T, E]` fp32; an expert whose logit is -inf scores 0.

    Args:
        scoring: "sparsemixer" scores by softmax before it weighs.
    """
    scores = _score(_capped(logits, cap), "softmax" if scoring == "sparsemixer" else scoring)
    return scores.masked_fill(logits.isneginf(), 0.0)


def route_logits(logits: Tensor, scores: Tensor, scoring: Scoring = "softmax", cap: float | None = None) -> Tensor:
    """Logits `[T, E]` fp32 that give changed scores `[T, E]`.

    Where a score is what the logit gives, the logit (capped) stays. Of a softmax, the others get the logarithm of their
    score plus that of the row's sum of exponentials, as it was.
    """
    capped, given = _capped(logits, cap), scores.double()
    if scoring == "sigmoid":
        made = given.logit()
    elif scoring == "sqrt_softplus":
        made = given.square() + (-torch.expm1(-given.square())).log()
    else:
        made = given.log() + capped.double().logsumexp(-1, keepdim=True)
    return torch.where(scores == route_scores(logits, scoring, cap), capped, made.float())


def route_changes(before: Tensor, after: Tensor, found: Tensor) -> Tensor:
    """Which rows of scores `[T, E]` fp32 somebody has changed: `[T]` bool. Rows that were not finite before are left
    out, for nobody changed them to that.

    Args:
        found: `[2]` int64, added to: how many rows they are; what their scores are, bit by bit: 1 for one that is not
            finite, 2 for a negative one, 4 for a row with none above 0 (`FAULTS`, all of these), 8 for a 0 (`ZEROS`).
    """
    rows = (after != before).any(1) & before.isfinite().all(1)
    others = after[rows]
    cases = ~others.isfinite().all(), (others < 0).any(), ~(others > 0).any(1).all(), (others == 0).any()
    found[0] += rows.sum()
    for bit, case in enumerate(cases):
        found[1] |= int(case) << bit
    return rows


def route_replace(
    ids: Tensor,
    weights: Tensor,
    new_ids: Tensor,
    new_weights: Tensor,
    scores: Tensor,
    changed: Tensor,
    counts: Tensor | None = None,
) -> None:
    """Write other choices over those of some rows, and put counts right.

    Args:
        ids: `[T, k]` int32, changed in place.
        weights: `[T, k]` fp32, likewise.
        new_ids, new_weights: `[T, n]`, n at most k; -1 and 0 follow.
        scores: `[T, E]`; new ids that score 0 become -1, with weight 0.
        changed: `[T]` bool, the rows concerned.
        counts: `[E]` int64, of tokens by expert: less what was chosen, plus what is.
    """
    own = new_ids[changed]
    unused = scores[changed].gather(1, own.clamp(min=0).long()).eq(0) | (own < 0)
    made = torch.full_like(ids[changed], -1), torch.zeros_like(weights[changed])
    made[0][:, : own.shape[1]] = own.masked_fill(unused, -1)
    made[1][:, : own.shape[1]] = new_weights[changed].masked_fill(unused, 0.0)
    if counts is not None:
        for rows, times in ((ids[changed], -1), (made[0], 1)):
            flat = rows.flatten().long()
            counts.index_add_(0, flat.clamp(min=0), (flat >= 0).long(), alpha=times)
    ids[changed], weights[changed] = made


def route_seconds() -> float:
    """What has been spent in `route` since the beginning; calls with a `choice` are left out, for whoever brings one
    measures all that he does."""
    return _spent[0]


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    logits = logits.float()
    return logits if cap is None else (torch.tanh(logits / cap) * cap).masked_fill(logits.isneginf(), float("-inf"))


def _score(x: Tensor, scoring: Scoring) -> Tensor:
    if scoring == "softmax":
        return x.softmax(-1)
    if scoring == "sigmoid":
        return x.sigmoid()
    return F.softplus(x).sqrt() if scoring == "sqrt_softplus" else x


def _sparsemixer(logits: Tensor, ids: Tensor, jitter: float) -> Tensor:
    """The weights `[T, k]` of experts that were chosen one after the other."""
    weights, left = [], logits.clone()  # those not chosen yet
    for chosen in ids.split(1, 1):
        best = logits.gather(1, chosen)
        far = (best - left) / torch.maximum(left.abs(), best) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(1, chosen))
        left.scatter_(1, chosen, float("-inf"))
    return torch.cat(weights, 1)


def _comparable(x: Tensor) -> Tensor:
    """NaN as infinity, -inf as the lowest finite number."""
    return x.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=LOWEST)


def _banned(choice: Tensor, banned: Tensor | None) -> Tensor:
    """-inf for those that are banned, and for no other."""
    return choice if banned is None else choice.masked_fill(banned, float("-inf"))


def _best(x: Tensor, k: int) -> Tensor:
    """Ids `[T, k]` of the largest, best first, among equals the lowest: torch.topk promises no order of equals, a
    stable sort does."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices[:, :k]


def _mask_groups(choice: Tensor, num_groups: int, top: int, group_score: GroupScore, masked_score: float) -> Tensor:
    groups = choice.unflatten(1, (num_groups, -1))
    tops = groups.topk(min(2 if group_score == "top2" else 1, groups.shape[-1]), dim=-1).values
    others = tops[..., 1:].sum(-1)
    best = tops[..., 0] + others.masked_fill(others.isneginf(), 0.0)  # a banned expert adds nothing
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, _best(_comparable(best), top), True)
    return groups.masked_fill(~kept[..., None], max(masked_score, LOWEST)).view_as(choice)

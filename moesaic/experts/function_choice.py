"""From scores that a routing function has changed to experts and weights, as the model's own router would.

Experts with score 0 are not chosen; a token with fewer others than k has fewer experts (id -1, weight 0). In all else:

- the choice is made on the scores, with the correction bias added where the model has one, among the experts of the
  best groups where it has groups. A group is judged by its experts that may be chosen; one without any is none of the
  best. Where the model adds its bias to logits ("select_then_score"), it is added to the logits of the scores.
- the weights are the chosen experts' scores; renormalised where the model does so, or takes a softmax over the chosen
  alone; then scaled, and multiplied by experts' own scales.
- "sparsemixer" weighs by logits: an expert whose score is unchanged keeps its own, the others have such as would give
  their score beside the row's sum of exponentials as it was (`route_logits`).

With scores and k as they were, that is the model's own choice, but for rounding; so rows that no function has changed
are left to the router, bit by bit (`changes_of`).
"""

from dataclasses import replace

import torch
from torch import Tensor

from moesaic.experts.function_types import Look, RoutingDecision, RoutingInput, ScoreChanges
from moesaic.experts.routing import Routing, RoutingKernels
from moesaic.models.spec import RouterSpec

UNSCORED = "its router does not score: it weighs by logits as they are, of either sign"


def refused(spec: RouterSpec) -> str:
    """Why functions cannot work on the scores of such a router; "" where they can."""
    return UNSCORED if spec.scoring == "identity" else ""


def changes_of(look: Look, given: RoutingInput, decision: RoutingDecision) -> ScoreChanges:
    """Which tokens functions have given other scores, or another k."""
    assert decision.scores is not None and isinstance(decision.k, Tensor)
    changes = look(given.scores, decision.scores)
    if decision.k is given.k:
        return changes
    rows = changes.rows | ((decision.k != given.k) & given.scores.isfinite().all(1))
    zeros = bool((decision.scores[rows] == 0).any())
    return replace(changes, rows=rows, count=int(rows.sum()), zeros=zeros)


def choose_by_scores(
    kernels: RoutingKernels,
    logits: Tensor,
    scores: Tensor,
    k: Tensor | int,
    spec: RouterSpec,
    correction: Tensor | None = None,
    expert_scale: Tensor | None = None,
    zeros: bool = True,
) -> Routing:
    """Experts and weights of N tokens by changed scores; experts with score 0 count as any other yet (`route_replace`).

    Args:
        logits: `[N, E]` fp32, the router's.
        scores: `[N, E]` fp32, not negative.
        k: experts of each token: `[N]` int64, or one number.
        correction, expert_scale: `[E]`, the router's.
        zeros: whether a score may be 0.

    Returns:
        ids and weights `[N, max(k)]`, -1 and 0 behind a token's last expert.
    """

    def choose(top_k: int) -> Routing:
        own = spec if top_k == spec.top_k else replace(spec, top_k=top_k)
        return _choose(kernels, logits, scores, own, correction, expert_scale, zeros)

    if isinstance(k, int):
        return choose(k)
    widest = int(k.max())
    ids = torch.full((len(k), widest), -1, dtype=torch.int32, device=scores.device)
    weights = torch.zeros(len(k), widest, device=scores.device)
    for count in k.unique().tolist():
        rows, own = k == count, choose(count)
        ids[rows, :count], weights[rows, :count] = own.ids[rows], own.weights[rows]
    return Routing(ids, weights)


def _choose(
    kernels: RoutingKernels,
    logits: Tensor,
    scores: Tensor,
    spec: RouterSpec,
    correction: Tensor | None,
    expert_scale: Tensor | None,
    zeros: bool,
) -> Routing:
    """The same with one k for all."""
    select_first = spec.order == "select_then_score"
    sparse = spec.scoring == "sparsemixer"
    among_chosen = select_first and spec.scoring == "softmax"  # their softmax alone: what is left sums up to 1
    changed = scores
    if sparse or (select_first and correction is not None):
        changed = kernels.route_logits(logits, scores, scoring=spec.scoring, cap=spec.cap)
    choice = scores if correction is None else (changed if select_first else scores) + correction
    chosen = kernels.route(
        changed if sparse else scores,
        spec.top_k,
        scoring="sparsemixer" if sparse else "identity",
        renormalize=spec.renormalize or among_chosen,
        epsilon=0.0 if among_chosen else spec.epsilon,
        floor=0.0 if among_chosen else spec.floor,
        num_groups=spec.num_groups,
        top_groups=spec.top_groups,
        group_score=spec.group_score,
        masked_score=spec.masked_score,
        scale=spec.scale,
        jitter=spec.jitter,
        expert_scale=expert_scale,
        choice=_below(choice, scores > 0).contiguous() if zeros else choice,
    )
    return Routing(*chosen)


def _below(choice: Tensor, eligible: Tensor) -> Tensor:
    """The choice `[N, E]`, with others than the eligible so far below all that they come last, but finite: a group with
    one eligible expert and any other is still better than one with none."""
    low = choice.masked_fill(~eligible, float("inf")).amin(1, keepdim=True)
    high = choice.masked_fill(~eligible, float("-inf")).amax(1, keepdim=True)
    return torch.where(eligible, choice, low - 4 * (high.abs() + low.abs() + 1))

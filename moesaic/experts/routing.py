"""Stage 1, route: which experts each token goes to, and with what weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.models.spec import RouterSpec


@dataclass
class Routing:
    """Where the step's tokens go.

    Attributes:
        ids: `[T, k]` int32, logical experts, best first; no token names one twice.
        weights: `[T, k]` fp32.
    """

    ids: Tensor
    weights: Tensor


def route(logits: Tensor, spec: RouterSpec) -> Routing:
    """Choose the experts of each token from its router logits `[T, E]`; computed in fp32."""
    scores = logits.float()
    if spec.order == "score_then_select":
        scores = torch.softmax(scores, -1)
    weights, ids = _top_k(scores, spec.top_k)
    if spec.order == "select_then_score":
        weights = torch.softmax(weights, -1)
    if spec.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(ids.int(), weights)


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first, and among equals the lowest id: torch.topk promises no order of equals,
    a stable sort does."""
    best, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    return best.narrow(1, 0, k), ids.narrow(1, 0, k)

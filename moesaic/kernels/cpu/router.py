"""Routing in C++. Arguments and results are those of `kernels.reference_router`."""

import ctypes

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import Count, Kernel, pointer
from moesaic.kernels.reference_router import GroupScore, Order, Scoring
from moesaic.kernels.route_table import RouteTable

SCORINGS = {"softmax": 0, "sigmoid": 1, "sqrt_softplus": 2, "identity": 3, "sparsemixer": 4}
ORDERS = {"score_then_select": 0, "select_then_score": 1}
GROUP_SCORES = {"top2": 0, "max": 1}


class RouteArguments(ctypes.Structure):
    """`moesaic_route_args`."""

    _fields_ = (
        ("rows", Count),
        ("logits", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("expert_scale", ctypes.c_void_p),
        ("choice", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("num_groups", ctypes.c_int64),
        ("top_groups", ctypes.c_int64),
        ("scoring", ctypes.c_int32),
        ("select_first", ctypes.c_int32),
        ("group_by_max", ctypes.c_int32),
        ("renormalize", ctypes.c_int32),
        ("masked_score", ctypes.c_float),
        ("cap", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("floor", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("jitter", ctypes.c_float),
    )


class RouteScoresArguments(ctypes.Structure):
    """`moesaic_route_scores_args`."""

    _fields_ = (
        ("rows", Count),
        ("logits", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("scoring", ctypes.c_int32),
        ("cap", ctypes.c_float),
    )


class RouteLogitsArguments(ctypes.Structure):
    """`moesaic_route_logits_args`."""

    _fields_ = (
        ("rows", Count),
        ("logits", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("scoring", ctypes.c_int32),
        ("cap", ctypes.c_float),
    )


class RouteChangesArguments(ctypes.Structure):
    """`moesaic_route_changes_args`."""

    _fields_ = (
        ("rows", Count),
        ("before", ctypes.c_void_p),
        ("after", ctypes.c_void_p),
        ("changed", ctypes.c_void_p),
        ("found", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
    )


class RouteReplaceArguments(ctypes.Structure):
    """`moesaic_route_replace_args`."""

    _fields_ = (
        ("rows", Count),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("new_ids", ctypes.c_void_p),
        ("new_weights", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("changed", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("new_width", ctypes.c_int64),
    )


class RouteTimeArguments(ctypes.Structure):
    """`moesaic_route_time_args`."""

    _fields_ = (("nanoseconds", ctypes.c_void_p),)


_route = Kernel("route")
_route_scores = Kernel("route_scores")
_route_logits = Kernel("route_logits")
_route_changes = Kernel("route_changes")
_route_replace = Kernel("route_replace")
_route_time = Kernel("route_time")


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
    """Choose the experts of each token and weigh them: logits `[T, E]` fp32 -> ids `[T, k]` int32 and weights `[T, k]`.

    `kernels.reference_router.route` says what each argument means.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    num_tokens, num_experts = logits.shape
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k} of {num_experts} experts")
    if not 1 <= top_groups <= num_groups or num_experts % num_groups:
        raise ValueError(f"{top_groups} of {num_groups} groups of {num_experts} experts")
    for name, tensor in (("bias", bias), ("expert_scale", expert_scale), ("counts", counts)):
        if tensor is not None and tensor.shape != (num_experts,):
            raise ValueError(f"{name} is {list(tensor.shape)}, there are {num_experts} experts")
    if choice is not None and choice.shape != logits.shape:
        raise ValueError(f"choice is {list(choice.shape)}, logits are {list(logits.shape)}")
    ids = torch.empty(num_tokens, top_k, dtype=torch.int32)
    weights = torch.empty(num_tokens, top_k)
    rows = ctypes.c_int64(num_tokens)
    arguments = RouteArguments(
        ctypes.pointer(rows),
        pointer(logits),
        pointer(bias),
        pointer(expert_scale),
        pointer(choice),
        pointer(ids, torch.int32),
        pointer(weights),
        pointer(counts, torch.int64),
        None if table is None else table.address,
        num_experts,
        top_k,
        num_groups,
        top_groups,
        SCORINGS[scoring],
        ORDERS[order],
        GROUP_SCORES[group_score],
        renormalize,
        masked_score,
        cap or 0.0,
        epsilon,
        floor,
        scale,
        jitter,
    )
    _route(arguments)
    return ids, weights


def route_scores(logits: Tensor, scoring: Scoring = "softmax", cap: float | None = None) -> Tensor:
    """The scores of all experts, with the bits that `route` makes: `[T, E]` -> `[T, E]` fp32 (as the oracle's)."""
    rows, scores = ctypes.c_int64(len(logits)), torch.empty_like(logits)
    given = ctypes.pointer(rows), pointer(logits), pointer(scores), logits.shape[1], SCORINGS[scoring], cap or 0.0
    _route_scores(RouteScoresArguments(*given))
    return scores


def route_logits(logits: Tensor, scores: Tensor, scoring: Scoring = "softmax", cap: float | None = None) -> Tensor:
    """Logits `[T, E]` fp32 that give changed scores `[T, E]` (as the oracle's)."""
    rows, out = ctypes.c_int64(len(logits)), torch.empty_like(logits)
    given = ctypes.pointer(rows), pointer(logits), pointer(scores), pointer(out), logits.shape[1]
    _route_logits(RouteLogitsArguments(*given, SCORINGS[scoring], cap or 0.0))
    return out


def route_changes(before: Tensor, after: Tensor, found: Tensor) -> Tensor:
    """Which rows of scores `[T, E]` fp32 have become others: `[T]` bool; what there is to say adds up in `found` `[2]`
    int64 (as the oracle's)."""
    rows, changed = ctypes.c_int64(len(before)), torch.empty(len(before), dtype=torch.bool)
    given = ctypes.pointer(rows), pointer(before), pointer(after), pointer(changed, torch.bool)
    _route_changes(RouteChangesArguments(*given, pointer(found, torch.int64), before.shape[1]))
    return changed


def route_replace(
    ids: Tensor,
    weights: Tensor,
    new_ids: Tensor,
    new_weights: Tensor,
    scores: Tensor,
    changed: Tensor,
    counts: Tensor | None = None,
) -> None:
    """Write other choices over those of the rows that `changed` `[T]` bool says (as the oracle's)."""
    rows, width, new_width = ctypes.c_int64(len(ids)), ids.shape[1], new_ids.shape[1]
    if new_width > width:
        raise ValueError(f"{new_width} choices a row do not fit into {width}")
    arguments = RouteReplaceArguments(
        ctypes.pointer(rows),
        pointer(ids, torch.int32),
        pointer(weights),
        pointer(new_ids, torch.int32),
        pointer(new_weights),
        pointer(scores),
        pointer(changed, torch.bool),
        pointer(counts, torch.int64),
        scores.shape[1],
        width,
        new_width,
    )
    _route_replace(arguments)


def route_seconds() -> float:
    """What this thread has spent in `route` without `choice` since it began, replayed calls included."""
    nanoseconds = ctypes.c_int64()
    _route_time(RouteTimeArguments(ctypes.addressof(nanoseconds)))
    return nanoseconds.value * 1e-9

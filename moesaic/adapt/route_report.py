"""Recorded routes in words: a table of how each layer's tokens spread over its experts (`experts.load`)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.experts.load import dead, entropy, imbalance, utilization
from moesaic.experts.profile_file import RouteProfile

MOST_HOT, MOST_DEAD = 4, 8  # experts that a line of the table names


def layers_of(profile: RouteProfile, tag: str | None = None) -> list[dict[str, Any]]:
    """What there is to say of each layer's tokens: of all requests, or of those with a tag.

    `hottest` are experts with their share of the layer's choices, busiest first; `weight` is the share of the routing
    weight that each of these carries.
    """
    counts, weights = profile.of(tag)
    return [
        {
            "layer": layer,
            "num_experts": len(tokens),
            "top_k": top_k,
            "utilization": utilization(tokens),
            "imbalance": imbalance(tokens),
            "entropy": entropy(tokens),
            "dead": dead(tokens),
            "hottest": _hottest(tokens, carried),
        }
        for layer, top_k, tokens, carried in zip(profile.layers, profile.top_k, counts, weights, strict=True)
    ]


def _hottest(tokens: NDArray[np.int64], weights: NDArray[np.float64]) -> list[dict[str, Any]]:
    busiest = [e for e in np.argsort(-tokens, kind="stable")[:MOST_HOT].tolist() if tokens[e]]
    whole, carried = tokens.sum(), max(weights.sum(), np.finfo(float).tiny)
    return [{"expert": e, "share": float(tokens[e] / whole), "weight": float(weights[e] / carried)} for e in busiest]


def report(profile: RouteProfile) -> dict[str, Any]:
    """All of a profile that fits in a JSON object: totals, and the layers, of all requests and of each tag."""
    return {
        "model": profile.model,
        "tokens": profile.tokens,
        "layers": layers_of(profile),
        "tags": {
            tag: {"tokens": tokens, "layers": layers_of(profile, tag)}
            for tag, tokens in zip(profile.tags, profile.tokens_of_tags, strict=True)
        },
    }


def table(profile: RouteProfile, tag: str | None = None) -> list[str]:
    """The lines of a table, a layer each."""
    tokens = profile.tokens if tag is None else profile.tokens_of_tags[profile.tags.index(tag)]
    of_whom = "all requests" if tag is None else f"requests with the tag {tag}"
    lines = [
        f"{profile.model}, {of_whom}: {tokens} tokens",
        "layer  experts  top-k  utilisation  imbalance  entropy  hottest experts (share of choices); dead ones",
    ]
    for row in layers_of(profile, tag):
        if row["imbalance"] is None:
            lines.append(f"{row['layer']:5}  {row['num_experts']:7}  {row['top_k']:5}  no tokens")
            continue
        hottest = ", ".join(f"{hot['expert']} ({hot['share']:.1%})" for hot in row["hottest"])
        lines.append(
            f"{row['layer']:5}  {row['num_experts']:7}  {row['top_k']:5}  {row['utilization']:11.1%}  "
            f"{row['imbalance']:9.2f}  {row['entropy']:7.3f}  {hottest}{_dead(row['dead'])}"
        )
    return lines


def _dead(experts: list[int]) -> str:
    if not experts:
        return ""
    more = f" and {len(experts) - MOST_DEAD} more" if len(experts) > MOST_DEAD else ""
    return f"; dead: {', '.join(map(str, experts[:MOST_DEAD]))}{more}"

"""Figures out of what a server says: the text of /metrics, and the JSON of /v1/moe/experts and /v1/moe/status."""

from collections.abc import Mapping
from typing import Any

from moesaic.advice.exposition import Metrics
from moesaic.advice.figures import FEW, Figures, LayerLoad, Times

STEERING_FLAGS = ("moe_routing_func", "moe_top_k", "simulate_routing")


def figures_of(
    metrics: Metrics, experts: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None
) -> Figures:
    """All figures that can be told.

    Args:
        experts: the reply of `GET /v1/moe/experts`; None where the model has none.
        status: the reply of `GET /v1/moe/status`, which adds the last minute's times, and flags.
    """
    status = status or {}
    steps, step_time = metrics.total("steps_total"), metrics.total("step_seconds_total")
    routing = metrics.times("moe_routing_latency_seconds")
    flags = _mapping(status.get("flags"))
    return Figures(
        model=metrics.label("info", "model") or "",
        layers=[_layer(told) for told in _mapping(experts).get("layers", ()) if told["imbalance"] is not None],
        compute_efficiency=metrics.mean("moe_compute_efficiency"),
        kv_usage=_share(metrics.value("kv_blocks_used"), metrics.value("kv_blocks")),
        kv_fragmentation=metrics.value("moe_memory_fragmentation", kind="kv"),
        expert_fragmentation=metrics.value("moe_memory_fragmentation", kind="experts"),
        running=int(metrics.total("num_requests_running")),
        waiting=int(metrics.total("num_requests_waiting")),
        preemptions=int(metrics.total("preemptions_total")),
        finished=int(metrics.total("requests_finished_total")),
        prompt_tokens=int(metrics.total("prompt_tokens_total")),
        generated_tokens=int(metrics.total("generation_tokens_total")),
        prefix_queries=int(metrics.total("prefix_cache_queries_tokens_total")),
        prefix_hits=int(metrics.total("prefix_cache_hits_tokens_total")),
        tokens_per_step=metrics.total("computed_tokens_total") / steps if steps else None,
        step_seconds=step_time / steps if steps else None,
        outside_model=1 - metrics.total("forward_seconds_total") / step_time if step_time else None,
        routing_share=routing.mean * routing.count / step_time if routing and step_time else None,
        first_token=_times(metrics, status, "time_to_first_token"),
        inter_token=_times(metrics, status, "inter_token_latency"),
        queue=_times(metrics, status, "request_queue_time"),
        flags=flags,
        steered_by=_steered_by(flags, status),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _layer(told: Mapping[str, Any]) -> LayerLoad:
    tokens = told["tokens"]
    part = told.get("part", "ffn")
    return LayerLoad(
        name=f"layer {told['layer']}" + (f" ({part})" if part != "ffn" else ""),
        num_experts=told["num_experts"],
        choices=sum(tokens),
        utilization=told["utilization"],
        imbalance=told["imbalance"],
        entropy=told["entropy"],
        busiest=max(range(len(tokens)), key=tokens.__getitem__),
        dead=told["dead"],
    )


def _times(metrics: Metrics, status: Mapping[str, Any], name: str) -> Times | None:
    """Of the last minute where enough happened in it, else since the start."""
    recent = _mapping(_mapping(status.get("latency")).get(name))
    if recent.get("count", 0) >= FEW:
        return Times(recent["count"], recent["mean"], recent["p50"], recent["p95"], "in the last minute")
    return metrics.times(f"{name}_seconds")


def _steered_by(flags: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    """What changes routes of all requests, as a user would name it."""
    found = [f"--{name.replace('_', '-')} {_shown(flags[name])}" for name in STEERING_FLAGS if flags.get(name)]
    profile = _mapping(status.get("routing")).get("profile")
    return [*found, f"the routing profile {profile!r}"] if profile else found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

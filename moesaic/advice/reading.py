"""Figures out of what a server says: the text of /metrics, and where there are the JSON of /v1/moe/experts and /status.

Metrics alone are enough; JSON adds the experts' ids and the server's flags.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.advice.exposition import Metrics
from moesaic.advice.figures import Figures, LayerLoad

STEERING_FLAGS = ("moe_routing_func", "moe_top_k", "simulate_routing")


def figures_of(
    metrics: Metrics, experts: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None
) -> Figures:
    """All figures that can be told.

    Args:
        experts: the reply of `GET /v1/moe/experts`.
        status: the reply of `GET /v1/moe/status`.
    """
    status = status or {}
    steps, step_time = metrics.total("steps_total"), metrics.total("step_seconds_total")
    routing = metrics.times("moe_routing_latency_seconds")
    flags = _mapping(status.get("flags"))
    return Figures(
        model=metrics.label("info", "model") or "",
        layers=_layers(metrics, _mapping(experts)),
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
        first_token=metrics.times("time_to_first_token_seconds"),
        inter_token=metrics.times("inter_token_latency_seconds"),
        queue=metrics.times("request_queue_time_seconds"),
        flags=flags,
        steered_by=_steered_by(flags, status),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _layers(metrics: Metrics, experts: Mapping[str, Any]) -> Sequence[LayerLoad]:
    """The load of each layer, by its experts' own counts where they are told."""
    if experts.get("layers"):
        return [_layer(layer) for layer in experts["layers"]]
    entropies, imbalances = metrics.by("moe_routing_entropy", "layer"), metrics.by("moe_token_imbalance", "layer")
    utilizations, choices = (
        metrics.by("moe_expert_utilization", "layer"),
        metrics.by("moe_expert_tokens_total", "layer"),
    )
    known = choices.keys() & entropies.keys() & imbalances.keys() & utilizations.keys()
    return [
        LayerLoad(int(layer), choices[layer], utilizations[layer], imbalances[layer], entropies[layer])
        for layer in sorted(known, key=int)
    ]


def _layer(told: Mapping[str, Any]) -> LayerLoad:
    tokens = told["tokens"]
    return LayerLoad(
        layer=told["layer"],
        choices=sum(tokens),
        utilization=told["utilization"],
        imbalance=told["imbalance"],
        entropy=told["entropy"],
        num_experts=told["num_experts"],
        busiest=max(range(len(tokens)), key=tokens.__getitem__, default=None),
        dead=told["dead"],
    )


def _steered_by(flags: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    """What changes routes of all requests, as a user would name it."""
    found = [f"--{name.replace('_', '-')} {_shown(flags[name])}" for name in STEERING_FLAGS if flags.get(name)]
    profile = _mapping(status.get("routing")).get("profile")
    return [*found, f"the routing profile {profile!r}"] if profile else found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

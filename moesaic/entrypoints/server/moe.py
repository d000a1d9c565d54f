"""What the model's experts do, and what the engine does beside them: for dashboards, `moesaic advise` and people."""

from dataclasses import fields
from time import monotonic
from typing import Any

from fastapi import APIRouter, Request, Response

from moesaic.entrypoints.server.errors import ApiError
from moesaic.entrypoints.server.generation import engine_of
from moesaic.entrypoints.server.replies import json_response

router = APIRouter()
STARTED = monotonic()
MAX_TAG_LENGTH = 128
NO_EXPERTS = "this model has no experts that the engine routes to"
SECRETS = ("api_key",)


@router.get("/v1/moe/experts")
async def experts(request: Request, window: str = "start", tag: str = "") -> Response:
    """How each layer's tokens spread over its experts.

    `window` is 1m, 1h or start; with `tag`, only tokens of requests with that routing tag count. A layer's `tokens` are
    by expert, its `utilization`, `imbalance`, `entropy` and `dead` as docs/statistics.md defines them (null where no
    token came). `seconds` is how far the window reaches back.
    """
    if len(tag) > MAX_TAG_LENGTH:
        raise ApiError(400, f"tag must have at most {MAX_TAG_LENGTH} characters, got {len(tag)}", param="tag")
    engine = engine_of(request)
    engine.check_health()
    found = await engine.ask("experts", window=window, tag=tag)
    if found is None:
        raise ApiError(404, NO_EXPERTS, code="no_experts")
    return json_response({"model": engine.info.names[0]} | found)


@router.get("/v1/moe/status")
async def status(request: Request) -> Response:
    """The engine's figures in one: requests, tokens, memory, percentiles of the last minute, flags.

    `latency` has count, mean, p50, p90, p95 and p99 of the last minute, in seconds (null where nothing happened).
    """
    return json_response(await status_of(request))


async def status_of(request: Request) -> dict[str, Any]:
    """The figures of `GET /v1/moe/status`."""
    engine = engine_of(request)
    engine.check_health()
    await engine.refresh()
    info, stats, metrics, moe = engine.info, engine.stats, engine.metrics, engine.metrics.moe
    recent = {name: values.percentiles() for name, values in metrics.recent.items() if not name.endswith("_tokens")}
    return {
        "model": info.names[0],
        "description": info.description,
        "uptime_seconds": monotonic() - STARTED,
        "requests": {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "preemptions": stats.preemptions_total,
            "finished": metrics.finished,
        },
        "tokens": {
            "prompt": metrics.prompt_tokens,
            "generated": metrics.generated_tokens,
            "computed": stats.computed_tokens_total,
            "recomputed": moe.recomputed_tokens_total if moe else 0,
            "prompt_per_second": metrics.recent["prompt_tokens"].rate(),
            "generated_per_second": metrics.recent["generation_tokens"].rate(),
        },
        "prefix_cache": {"queries": stats.prefix_queries_total, "hits": stats.prefix_hits_total},
        "latency": recent,
        "steps": {
            "count": stats.steps_total,
            "seconds": stats.step_seconds_total,
            "forward_seconds": stats.forward_seconds_total,
            "routing_seconds": stats.routing_seconds_total,
        },
        "kv": {
            "blocks": stats.kv_blocks_total,
            "blocks_used": stats.kv_blocks_used,
            "usage": stats.kv_blocks_used / max(1, stats.kv_blocks_total),
            "block_size": info.block_size,
            "bytes": info.kv_bytes,
            "fragmentation": moe.kv_fragmentation if moe else None,
        },
        "state_slots": {
            "all": stats.state_slots_total,
            "used": stats.state_slots_used,
            "checkpoints": stats.state_checkpoints,
        },
        "experts": {
            "bytes": moe.expert_bytes if moe else 0,
            "fragmentation": moe.expert_fragmentation if moe else None,
            "compute_efficiency": moe.compute_efficiency if moe else None,
        },
        "routing": {"profile": engine.profiles.listing()["active"]},
        "flags": _flags(engine.args) | _flags(request.app.state.settings),
    }


def _flags(arguments: Any) -> dict[str, Any]:
    """Arguments as they were given, secrets left out."""
    return {f.name: getattr(arguments, f.name) for f in fields(arguments) if f.name not in SECRETS}

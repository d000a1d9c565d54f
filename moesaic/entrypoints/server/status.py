"""What the server says of itself: models, health, version, metrics."""

from time import time
from typing import Any

from fastapi import APIRouter, Request, Response

from moesaic import __version__
from moesaic.entrypoints.server.generation import check_model, engine_of
from moesaic.entrypoints.server.replies import json_response

router = APIRouter()
STARTED = int(time())


def _card(request: Request, name: str) -> dict[str, Any]:
    """OpenAI's model object; max_model_len is vLLM's addition."""
    return {
        "id": name,
        "object": "model",
        "created": STARTED,
        "owned_by": "moesaic",
        "max_model_len": engine_of(request).info.max_model_len,
    }


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The names that requests may give as `model`."""
    cards = [_card(request, name) for name in engine_of(request).info.names]
    return json_response({"object": "list", "data": cards})


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    """One of them."""
    check_model(request, model)
    return json_response(_card(request, model))


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests can be served, else 503 with the reason."""
    engine_of(request).check_health()
    return json_response({"status": "ok"})


@router.get("/version")
async def version() -> Response:
    """The engine's version."""
    return json_response({"version": __version__})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    engine = engine_of(request)
    await engine.refresh()
    content, content_type = engine.metrics.render()
    return Response(content, media_type=content_type)

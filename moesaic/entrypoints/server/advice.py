"""GET /v1/moe/advice: what `moesaic advise` says, for the dashboard."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from moesaic.advice.report import advise
from moesaic.entrypoints.server.generation import engine_of
from moesaic.entrypoints.server.replies import json_response

router = APIRouter()


@router.get("/v1/moe/advice")
async def advice(request: Request) -> Response:
    """What to change about this server, by its own figures; `outcomes` holds a branch of the tree each."""
    metrics, _ = engine_of(request).metrics.render()
    return json_response(asdict(advise(metrics.decode())))

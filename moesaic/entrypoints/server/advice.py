"""GET /v1/moe/advice: what `moesaic advise` says, for the dashboard."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from moesaic.advice.report import WINDOW, advise
from moesaic.entrypoints.server.generation import engine_of
from moesaic.entrypoints.server.moe import status_of
from moesaic.entrypoints.server.replies import json_response

router = APIRouter()


@router.get("/v1/moe/advice")
async def advice(request: Request) -> Response:
    """What to change about this server, by its own figures: `outcomes` holds each branch of the tree.

    A branch has `findings` (`problem`, `because`, `advice`), the `figures` of what was looked at, and what is
    `unknown`. There is none before `has_traffic`.
    """
    engine = engine_of(request)
    status = await status_of(request)
    experts = await engine.ask("experts", window=WINDOW, tag="")
    metrics, _ = engine.metrics.render()
    return json_response(asdict(advise(metrics.decode(), experts, status)))

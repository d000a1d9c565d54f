"""/v1/moe/routing: what decides over routes: profiles, which one requests use that name none, functions, top-k."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from moesaic.core.errors import RequestError
from moesaic.entrypoints.server.body import read_body
from moesaic.entrypoints.server.errors import ApiError
from moesaic.entrypoints.server.generation import engine_of
from moesaic.entrypoints.server.openapi import takes
from moesaic.entrypoints.server.protocol import Strict
from moesaic.entrypoints.server.replies import json_response

router = APIRouter()


class ActiveProfile(Strict):
    """The name of the profile to be active from now on, or null for none."""

    profile: str | None


def _state(request: Request) -> dict[str, Any]:
    engine = engine_of(request)
    moe = engine.info.moe
    layers = moe.layers if moe is not None else []
    return {
        "model": engine.info.names[0],
        "layers": [{"layer": at.index, "num_experts": at.num_experts, "top_k": at.top_k} for at in layers],
        "fixed": (moe.fixed or None) if moe is not None else "the model has no experts",
        "functions": engine.info.routing_functions,
        **engine.profiles.listing(),
    }


@router.get("/v1/moe/routing")
async def routing(request: Request) -> Response:
    """Every profile as its file states it, with its version and tags; `error` where the file is broken now.

    `layers` are those with experts, and how many of them a token goes to on this server; `fixed` says why routes cannot
    be changed, where they cannot.
    """
    await asyncio.to_thread(engine_of(request).profiles.refresh)
    return json_response(_state(request))


@router.post("/v1/moe/routing", openapi_extra=takes(ActiveProfile))
async def set_routing(request: Request) -> Response:
    """Switch. Requests under way keep what they began with."""
    body = await read_body(request, ActiveProfile)
    profiles = engine_of(request).profiles
    await asyncio.to_thread(profiles.refresh)  # a file that was just written counts
    try:
        profiles.activate(body.profile)
    except RequestError as error:
        raise ApiError(404, str(error), param="profile", code="routing_profile_not_found") from error
    return json_response(_state(request))

"""/v1/moe/profile: recording where tokens go, to a file in the folder that the operator named."""

import os
import re
from time import localtime, strftime
from typing import Any

from fastapi import APIRouter, Request, Response

from moesaic.core.errors import RequestError
from moesaic.entrypoints.server.body import read_body
from moesaic.entrypoints.server.errors import ApiError
from moesaic.entrypoints.server.generation import engine_of
from moesaic.entrypoints.server.openapi import takes
from moesaic.entrypoints.server.protocol import Strict
from moesaic.entrypoints.server.replies import json_response

SUFFIX = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
router = APIRouter()


class StartRecording(Strict):
    """What to record.

    Attributes:
        path: the file's name in the server's folder; by default one of date and time.
        tags: only requests with one of these routing tags; all by default.
        stream_tokens: keep the choices of so many tokens one by one, too.
    """

    path: str | None = None
    tags: list[str] | None = None
    stream_tokens: int | None = None


@router.get("/v1/moe/profile")
async def recording_status(request: Request) -> Response:
    """Whether routes are being recorded, where to, and of how many tokens so far."""
    return await _ask(request, "profile_status")


@router.post("/v1/moe/profile/start", openapi_extra=takes(StartRecording))
async def start_recording(request: Request) -> Response:
    """Begin. One recording runs at a time; its file is written when it is stopped."""
    body = await read_body(request, StartRecording)
    path = os.path.join(_folder(request), _name(body.path))
    arguments = {"path": path, "tags": body.tags, "stream_tokens": body.stream_tokens or 0, "overwrite": False}
    return await _ask(request, "profile_start", **arguments)


@router.post("/v1/moe/profile/stop")
async def stop_recording(request: Request) -> Response:
    """End, and write the file. Running requests go on; what they do from now on is not recorded."""
    _folder(request)
    return await _ask(request, "profile_stop")


def _folder(request: Request) -> str:
    folder: str | None = request.app.state.profile_folder
    if folder is None:
        raise ApiError(
            403,
            "this server records no routes: start it with --moe-profile-dir DIR, which files are written into",
            code="recording_disabled",
        )
    return folder


def _name(given: str | None) -> str:
    """A file's name, and nothing but a name. Raises RequestError."""
    name = given if given is not None else strftime("routes-%Y%m%d-%H%M%S", localtime())
    if not NAME.fullmatch(name):
        raise RequestError(
            "path must be a file's name of letters, digits, dots, dashes and underscores, without a folder: it is "
            f"written into the server's --moe-profile-dir; got {given!r}",
            "path",
        )
    return name if name.endswith(SUFFIX) else name + SUFFIX


async def _ask(request: Request, kind: str, **arguments: Any) -> Response:
    """What the engine says of its recording: with the file's name alone, for its folder is no client's business."""
    try:
        status = await engine_of(request).ask(kind, **arguments)
    except RequestError as error:
        folder = os.path.join(request.app.state.profile_folder or "", "")
        raise RequestError(str(error).replace(folder, "") if folder else str(error), error.param) from error
    return json_response(status | ({"path": os.path.basename(status["path"])} if "path" in status else {}))

"""Request bodies: read up to a limit, parsed once, checked; every fault becomes one 400 that names the field."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from moesaic.core.errors import RequestError
from moesaic.entrypoints.server.errors import ApiError

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_FAULTS = 4  # as many are named at once
TYPE_TAGS = frozenset({"str", "int", "float", "bool"})  # parts of pydantic's paths that are no field names

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`.

    Raises:
        RequestError: it is not JSON, or a field is wrong.
        ApiError: 413 too large, 415 not declared as JSON.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page may send text/plain anywhere without asking; JSON it may not (CORS). So this guards local servers.
    if declared != "application/json":
        raise ApiError(415, f"Content-Type must be application/json, got {declared or 'none'}")
    try:
        return model.model_validate_json(await _read(request))
    except ValidationError as error:
        raise _as_request_error(error) from None


async def _read(request: Request) -> bytes:
    """The whole body, refused as soon as it is known to exceed the limit."""
    too_large = ApiError(413, f"the request body is larger than {MAX_BODY_BYTES // 2**20} MiB", code="body_too_large")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return bytes(body)


def _as_request_error(error: ValidationError) -> RequestError:
    """All faults in one message; `param` is that of the first."""
    faults = [_fault(detail) for detail in error.errors(include_url=False, include_input=False)]
    messages = list(dict.fromkeys(str(fault) for fault in faults))
    if len(messages) > MAX_FAULTS:
        messages = [*messages[:MAX_FAULTS], f"and {len(messages) - MAX_FAULTS} more"]
    return RequestError("; ".join(messages), faults[0].param)


def _fault(detail: Any) -> RequestError:
    """One of pydantic's findings as an error with the field's path."""
    path = _path(detail["loc"])
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # raised by a validator of ours
        nested = "[" in path
        return RequestError(f"{path}: {cause}" if nested else str(cause), path if nested else cause.param)
    if detail["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {detail['ctx']['error']}")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return RequestError(f"{path}: {message}" if path else f"the body: {message}", path or None)


def _path(location: tuple[str | int, ...]) -> str:
    """`messages[0].content` of ("messages", 0, "content"); ends where names of types begin."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in TYPE_TAGS:
            path += f".{part}" if path else part
        else:
            break
    return path

"""Around every request: its id, its line in the log, its last-resort error, and the API key."""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moesaic.core.log import get_logger
from moesaic.entrypoints.server.errors import ApiError, error_response

logger = get_logger("moesaic.server")  # of every line a request leaves
ID_HEADER = "X-Request-Id"
MAX_ID_LENGTH = 128


class RequestScope:
    """Gives each request an id (the client's own, if it sent one), logs it once it is over, catches what nobody did."""

    def __init__(self, app: ASGIApp, log_requests: bool = True) -> None:
        self.app = app
        self.log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise  # half a response is out: only closing the connection can tell
            await error_response(error)(scope, receive, send_with_id)
        finally:
            if self.log_requests and scope["method"] == "POST":
                what = f"{scope['method']} {scope['path']}"
                logger.info("%s %s: %s", request_id, what, _outcome(state, status, perf_counter() - start))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(ID_HEADER, "")
    return given if given.isprintable() and 0 < len(given) <= MAX_ID_LENGTH else uuid4().hex


def _outcome(state: dict[str, Any], status: int, seconds: float) -> str:
    """`200 in 0.52 s, 23 prompt tokens (16 cached), 64 generated`."""
    text = f"{status} in {seconds:.2f} s"
    meter = state.get("meter")
    if meter is not None and meter.prompts:
        usage = meter.usage
        cached = usage.prompt_tokens_details.cached_tokens
        text += f", {usage.prompt_tokens} prompt tokens ({cached} cached), {usage.completion_tokens} generated"
    return f"{text}, client gone" if state.get("client_gone") else text


class ApiKeys:
    """Lets only requests with a key reach the API under /v1; pages, health and metrics stay open."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_api(scope) and not self._knows(scope):
            refusal = ApiError(
                401,
                "this server needs an API key: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(refusal)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Compares with every key, in a time that depends on none: digests are of one length."""
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = sha256(key.strip().encode("latin-1")).digest()
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(found) and scheme.lower() == "bearer"


def _is_api(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path == "/v1" or path.startswith("/v1/")

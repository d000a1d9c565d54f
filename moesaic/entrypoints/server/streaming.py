"""Server-sent events, and the rule that work for a client ends when the client is gone."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from moesaic.entrypoints.server.errors import as_api_error
from moesaic.entrypoints.server.replies import encode

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # asks nginx to pass events on as they come
}


def event(message: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(message) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client is gone.

    Raises:
        ClientDisconnect: it is.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream_response(request: Request, events: AsyncGenerator[bytes, None]) -> Response:
    """A response that sends `events`. It waits for the first one, so that a refusal has an HTTP status of its own."""

    async def first_event() -> bytes:
        return await anext(events)

    return EventStream(await while_connected(request.receive, first_event()), events)


class EventStream(Response):
    """Sends events as they come; a client that leaves ends the work behind them at once."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers(HEADERS)
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except ClientDisconnect:
            scope["state"]["client_gone"] = True
        finally:
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for chunk in self._rest:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:  # the status is sent: only the stream itself can still tell
            await send({"type": "http.response.body", "body": event(as_api_error(error).body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

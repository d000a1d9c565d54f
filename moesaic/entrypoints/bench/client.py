"""A client of an OpenAI-compatible server that does little beside waiting: it shares the server's cores."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

LAST_WORDS = 300  # characters of a refusal that are kept
DATA = b"data:"
DONE = b"[DONE]"


class ServerError(Exception):
    """The server did not answer as it should; the message says how."""


@dataclass
class Reply:
    """What came of one request; times are of perf_counter.

    Attributes:
        first, last: when the first and the last piece of the answer came.
        tokens: of the answer, as the server counts them.
        error: why it failed.
    """

    sent: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    error: str | None = None

    @property
    def first_token_seconds(self) -> float:
        return self.first - self.sent

    @property
    def seconds_per_token(self) -> float | None:
        """Mean over the tokens after the first; None if there is no such token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


class Client:
    """Speaks to one server, a connection a request.

    Args:
        url: such as http://localhost:8000, with or without /v1.
        timeout: seconds that a request may take.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is no address of a server: http://host:port")
        self._host, self._netloc = parts.hostname, parts.netloc
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = timeout

    async def models(self) -> list[dict[str, Any]]:
        """What the server serves. Raises ServerError."""
        try:
            async with asyncio.timeout(self._timeout):
                body = b"".join([part async for part in self._request("GET", "/v1/models")])
            served: list[dict[str, Any]] = json.loads(body)["data"]
        except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
            raise ServerError(f"no answer to /v1/models: {_in_words(error)}") from error
        return served

    async def complete(self, model: str, prompt: list[int], max_tokens: int) -> Reply:
        """Complete a prompt of token ids, greedily, to `max_tokens` tokens; a failure is in the reply."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        reply = Reply(sent=perf_counter())
        try:
            async with asyncio.timeout(self._timeout):
                await self._stream(body, reply)
        except (OSError, TimeoutError, ValueError, ServerError, asyncio.IncompleteReadError) as error:
            reply.error = _in_words(error)
        if reply.error is None and not reply.tokens:
            reply.error = "the answer held no token"
        return reply

    async def _stream(self, body: dict[str, Any], reply: Reply) -> None:
        pieces, ended = 0, False
        async for line in self._lines("/v1/completions", json.dumps(body).encode()):
            if line == DONE:
                ended = True
                continue
            event = json.loads(line)
            if "error" in event:
                raise ServerError(str(event["error"].get("message", event["error"])))
            if event.get("choices"):
                reply.last = perf_counter()
                reply.first = reply.first or reply.last
                pieces += 1
            if event.get("usage"):
                reply.tokens = event["usage"]["completion_tokens"]
        if not ended:
            raise ServerError("the stream broke off")
        reply.tokens = reply.tokens or pieces

    async def _lines(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The payloads of server-sent events."""
        rest = b""
        async for part in self._request("POST", path, body):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(DATA):
                    yield line[len(DATA) :].strip()

    async def _request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[bytes]:
        """The body of the answer, in pieces as they come. Raises ServerError for any status but 200."""
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._ssl)
        try:
            headers = {
                "Host": self._netloc,
                "Connection": "close",
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **self._headers,
            }
            lines = [f"{method} {self._base}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await writer.drain()
            status, answered = await _head(reader)
            pieces = _chunks(reader) if answered.get("transfer-encoding") == "chunked" else _until_closed(reader)
            if status != 200:
                said = b"".join([piece async for piece in pieces]).decode(errors="replace")
                raise ServerError(f"status {status}: {said[:LAST_WORDS]}")
            async for piece in pieces:
                yield piece
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case) of an answer."""
    words = (await reader.readline()).split()
    if len(words) < 2 or not words[1].isdigit():
        raise ServerError("the server closed the connection without an answer")
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip().lower()
    return int(words[1]), headers


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """A body in HTTP's chunked coding."""
    while size := int((await reader.readline()).partition(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readline()


async def _until_closed(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(65536):
        yield piece


def _in_words(error: BaseException) -> str:
    return str(error) or type(error).__name__

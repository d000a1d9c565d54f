"""The client of `moesaic bench serve` against servers that do as they please, and its arithmetic."""

import asyncio
import json
import re

import pytest

from moesaic.core.errors import MoesaicError
from moesaic.entrypoints.bench.client import Client, Reply, ServerError
from moesaic.entrypoints.bench.serving import Load, figures_of, percentile

OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(message: object) -> bytes:
    return chunk(b"data: " + (message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n\n")


def reply_to(*parts: bytes) -> Reply:
    """What the client makes of a server that sends these parts and hangs up."""

    async def run() -> Reply:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await Client(f"http://127.0.0.1:{port}/v1", timeout=5).complete("m", [1, 2], 3)

    return asyncio.run(run())


TOKEN = {"choices": [{"text": "a"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 3}}


def test_tokens_are_as_the_server_counts_them() -> None:
    reply = reply_to(OK, event(TOKEN), event(TOKEN), event(USAGE), event(b"[DONE]"), chunk(b""))
    assert (reply.error, reply.tokens) == (None, 3)
    assert 0 < reply.first_token_seconds < reply.last - reply.sent
    assert reply.seconds_per_token == pytest.approx((reply.last - reply.first) / 2)


def test_an_event_may_come_in_pieces() -> None:
    whole = event(TOKEN)
    assert reply_to(OK, whole[:9], whole[9:], event(USAGE) + event(b"[DONE]") + chunk(b"")).error is None


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nbusy",), "status 429: busy"),
        ((), "closed the connection without an answer"),
        ((OK, event(TOKEN), chunk(b"")), "the stream broke off"),
        ((OK, event(TOKEN)), "invalid literal|bytes read"),
        ((OK, event({"error": {"message": "no memory"}}), chunk(b"")), "no memory"),
        ((OK, event(b"{"), chunk(b"")), "Expecting property name"),
        ((OK, event(b"[DONE]"), chunk(b"")), "held no token"),
    ],
)
def test_a_failure_is_told(parts: tuple[bytes, ...], reason: str) -> None:
    reply = reply_to(*parts)
    assert reply.error is not None

    assert re.search(reason, reply.error), reply.error


def test_a_server_that_is_not_there_is_an_error_of_each_request() -> None:
    assert "Connect" in (asyncio.run(Client("127.0.0.1:9").complete("m", [1], 1)).error or "")


def test_an_address_must_be_one() -> None:
    with pytest.raises(ServerError, match="no address of a server"):
        Client("ftp://x")


def load(count: int) -> Load:
    return Load(inputs=[10] * count, outputs=[3] * count, rate=None, concurrency=None, seed=0)


def test_rates_and_waits() -> None:
    replies = [
        Reply(sent=0.0, first=1.0, last=2.0, tokens=3),
        Reply(sent=0.0, first=3.0, last=7.0, tokens=3),
        Reply(sent=0.0, error="gone"),
    ]
    figures = {f.metric: f.value for f in figures_of("m", load(3), replies, 8.0)}
    assert figures["requests"] == 2 / 8 and figures["generated_tokens"] == 6 / 8 and figures["failed"] == 1
    assert figures["total_tokens"] == (20 + 6) / 8  # a failed request's prompt is no work done
    assert figures["time_to_first_token_mean"] == 2000 and figures["time_to_first_token_p99"] == 3000
    assert figures["time_per_output_token_median"] == pytest.approx((500 + 2000) / 2)


def test_all_failed() -> None:
    with pytest.raises(MoesaicError, match="all 2 requests failed: gone"):
        figures_of("m", load(2), [Reply(sent=0.0, error="gone")] * 2, 1.0)


def test_percentile() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([float(i) for i in range(1, 201)], 99) == 198.0
    assert percentile([5.0], 1) == 5.0

"""A client that leaves ends its request in the engine at once, streamed or not. Plain ASGI, without a socket."""

import asyncio
import json

import pytest

from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.generation import merge
from moesaic.entrypoints.server.settings import ServerArgs


class Connection:
    """One request over ASGI; the client leaves when told to."""

    def __init__(self, app, body) -> None:
        self.sent = []
        self._arriving = asyncio.Queue()
        self._arriving.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._arriving.get, self._send))

    async def _send(self, message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._arriving.put_nowait({"type": "http.disconnect"})


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello", ["hello", "again"]])
@pytest.mark.parametrize("hang", [0, 3])  # before the first token, and in the middle
def test_leaving_aborts(engine, stream, prompt, hang):
    engine.hang = hang

    async def scenario() -> None:
        connection = Connection(create_app(engine, ServerArgs()), {"prompt": prompt, "stream": stream})
        wanted = 1 if isinstance(prompt, str) else 2
        await until(lambda: len(engine.running) == wanted)
        if stream and hang:
            await until(lambda: len(connection.sent) >= 1 + hang)
        connection.leave()
        async with asyncio.timeout(5):
            await connection.task
        assert len(engine.aborted) == wanted and not engine.running

    asyncio.run(scenario())


def test_leaving_one_does_not_touch_another(engine):
    engine.script = "x" * 150

    async def scenario() -> None:
        app = create_app(engine, ServerArgs())
        stays = Connection(app, {"prompt": "a", "stream": True, "max_tokens": 100})
        leaves = Connection(app, {"prompt": "b", "stream": True, "max_tokens": 100})
        await until(lambda: len(leaves.sent) > 3)
        leaves.leave()
        await asyncio.gather(leaves.task, stays.task)
        assert len(engine.aborted) == 1
        assert stays.sent[-2]["body"] == b"data: [DONE]\n\n" and not stays.sent[-1]["more_body"]

    asyncio.run(scenario())


def test_one_write_a_step(engine):
    async def scenario() -> None:
        connection = Connection(
            create_app(engine, ServerArgs()), {"prompt": "a", "stream": True, "n": 3, "max_tokens": 4}
        )
        await connection.task
        start, *chunks, done, end = connection.sent
        assert start["status"] == 200 and done["body"] == b"data: [DONE]\n\n" and end["body"] == b""
        assert [chunk["body"].count(b"data: ") for chunk in chunks] == [3] * 4

    asyncio.run(scenario())


async def _numbers(count, closed, name, fail=False):
    try:
        for i in range(count):
            await asyncio.sleep(0)
            yield i
        if fail:
            raise ValueError(name)
        await asyncio.sleep(0 if count < 100 else 100)
    finally:
        closed.append(name)


def test_merge_gives_all_and_closes_all():
    async def scenario() -> None:
        closed = []
        got = [item async for item in merge([_numbers(2, closed, "a"), _numbers(3, closed, "b")])]
        assert sorted(got) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] and sorted(closed) == ["a", "b"]
        closed.clear()
        with pytest.raises(ValueError, match="b"):
            async for _ in merge([_numbers(100, closed, "a"), _numbers(3, closed, "b", fail=True)]):
                pass
        assert sorted(closed) == ["a", "b"]
        closed.clear()
        stream = merge([_numbers(100, closed, "a"), _numbers(100, closed, "b")])
        await anext(stream)
        await stream.aclose()
        assert sorted(closed) == ["a", "b"]

    asyncio.run(scenario())

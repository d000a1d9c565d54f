"""The engine behind its socket: streams, deltas, aborts, failures; and a front end without torch."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic import EngineArgs, SamplingParams
from moesaic.core.errors import ConfigError, EngineDeadError, RequestError
from moesaic.engine.async_engine import AsyncEngine

ARGS = EngineArgs(model="moe-model", dtype="float32", threads=1)


def run(scenario, args: EngineArgs = ARGS) -> None:
    """Run an async function of an engine, which is shut down whatever happens."""

    async def whole() -> None:
        engine = await AsyncEngine.start(args)
        try:
            await asyncio.wait_for(scenario(engine), 120)
        finally:
            await engine.shutdown()

    asyncio.run(whole())


async def drained(engine: AsyncEngine) -> bool:
    """Whether all blocks come back within two seconds."""
    for _ in range(40):
        if engine.stats.kv_blocks_used == 0 and engine.stats.num_running == 0:
            return True
        await asyncio.sleep(0.05)
    return False


def test_streams_deltas_and_aborts():
    async def scenario(engine: AsyncEngine) -> None:
        params = SamplingParams(temperature=0, max_tokens=20, n=2, logprobs=1)
        whole = [o async for o in engine.generate("Experts are", params, "whole")]
        parts = [o async for o in engine.generate("Experts are", params, "parts", delta=True)]
        assert whole[-1].finished and parts[-1].finished
        for index in range(2):
            final = whole[-1].outputs[index]
            pieces = [c for o in parts for c in o.outputs if c.index == index]
            assert "".join(c.text for c in pieces) == final.text
            assert [t for c in pieces for t in c.token_ids] == final.token_ids
            assert sum(len(c.logprobs) for c in pieces) == len(final.token_ids)
            assert pieces[-1].finish_reason == final.finish_reason

        async def count(i: int) -> int:
            sampling = SamplingParams(max_tokens=5 + i, ignore_eos=True)
            return len([o async for o in engine.generate([1 + i], sampling, f"many-{i}", delta=True)])

        assert await asyncio.gather(*(count(i) for i in range(16))) == [5 + i for i in range(16)]

        stream = engine.generate("go on", SamplingParams(max_tokens=1500, ignore_eos=True), "gone")
        async for _ in stream:
            break
        assert engine.stats.kv_blocks_used > 0
        await stream.aclose()
        assert await drained(engine)

        with pytest.raises(RequestError, match="empty"):
            async for _ in engine.generate("", params, "bad"):
                pass
        stopped = [o async for o in engine.generate("Experts are", SamplingParams(stop=" "), "stop")]
        assert stopped[-1].outputs[0].finish_reason == "stop" and await drained(engine)
        text = engine.metrics.render()[0].decode()
        assert 'moesaic_requests_finished_total{reason="abort"} 1.0' in text
        assert "moesaic_time_to_first_token_seconds_count" in text

    run(scenario)


def test_a_killed_engine_fails_its_streams_and_says_so():
    async def scenario(engine: AsyncEngine) -> None:
        stream = engine.generate("go on", SamplingParams(max_tokens=2000, ignore_eos=True), "victim")
        await anext(stream)
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        with pytest.raises(EngineDeadError):
            engine.check_health()
        with pytest.raises(EngineDeadError):
            await anext(engine.generate("x", SamplingParams(), "late"))

    run(scenario)


def test_errors_of_the_start_keep_their_kind():
    with pytest.raises(ConfigError, match="neither a folder"):
        asyncio.run(AsyncEngine.start(EngineArgs(model="/does/not/exist")))
    with pytest.raises(ConfigError, match="not a file"):
        asyncio.run(AsyncEngine.start(EngineArgs(model="moe-model", chat_template="/does/not/exist")))


PARENT = """
import asyncio, os, sys
from moesaic.engine.args import EngineArgs
from moesaic.engine.async_engine import AsyncEngine
async def main():
    engine = await AsyncEngine.start(EngineArgs(threads=1))
    print(engine._process.pid, "torch" in sys.modules, flush=True)
    os._exit(0)  # no farewell
asyncio.run(main())
"""


def test_the_engine_ends_with_its_parent_and_the_parent_has_no_torch(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    pid, torch_imported = done.stdout.split()
    assert torch_imported == "False"

    async def gone() -> bool:
        for _ in range(100):
            if not is_running(int(pid)):
                return True
            await asyncio.sleep(0.05)
        return False

    assert asyncio.run(gone())
    assert not list(tmp_path.iterdir()), "the folder of the socket was left behind"


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_questions_are_answered_or_refused():
    async def scenario(engine: AsyncEngine) -> None:
        with pytest.raises(RequestError, match="unknown question 'weather'"):
            await engine.ask("weather", of="tomorrow")
        asked = asyncio.gather(*(engine.ask("weather") for _ in range(3)), return_exceptions=True)
        outputs = [o async for o in engine.generate([1, 2], SamplingParams(max_tokens=4, ignore_eos=True), "beside")]
        assert outputs[-1].finished and all(isinstance(error, RequestError) for error in await asked)

    run(scenario)

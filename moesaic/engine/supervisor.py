"""Starts the engine process, waits until it is ready, notices when it dies, ends it. Torch-free."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio

from moesaic.core import errors
from moesaic.core.errors import EngineDeadError, MoesaicError
from moesaic.core.messages import (
    EngineInfo,
    Fatal,
    FromEngine,
    Ready,
    Shutdown,
    ToEngine,
    decode_from_engine,
    encode,
)
from moesaic.engine.args import EngineArgs
from moesaic.models.registry import Handover, ModelRegistry

SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class EngineStart:
    """What the engine process is told first: the arguments, and the architectures that were registered here."""

    args: EngineArgs
    registrations: Handover


class EngineProcess:
    """One engine in a process of its own, at the other end of a private Unix socket.

    Attributes:
        info: set once it is ready.
    """

    info: EngineInfo
    _death: "asyncio.Task[int]"

    def __init__(self) -> None:
        # mkdtemp makes a folder that only this user can enter: nobody else can reach the socket
        self._folder = tempfile.mkdtemp(prefix="moesaic-")
        self._socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # neither side may wait for the other to take messages in
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, args: EngineArgs) -> "EngineProcess":
        """Start it and wait until the model is loaded.

        Raises:
            MoesaicError: of the kind, and with the message, that the engine gave for failing to start.
        """
        self = cls()
        try:
            address = f"ipc://{self._folder}/engine"
            self._socket.bind(address)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "moesaic.engine.process",
                address,
                stdin=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
            self._death = asyncio.create_task(self._process.wait())
            assert self._process.stdin is not None
            start = EngineStart(args, ModelRegistry.handover())
            self._process.stdin.write(msgspec.json.encode(start) + b"\n")
            await self._process.stdin.drain()
            message = await self.receive()
            assert isinstance(message, Ready)
            self.info = message.info
        except BaseException:
            await self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        assert self._process is not None
        return self._process.pid

    async def send(self, message: ToEngine) -> None:
        """Send one message to the engine."""
        await self._socket.send(encode(message))

    async def receive(self) -> FromEngine:
        """The engine's next message.

        Raises:
            EngineDeadError: it has ended.
            MoesaicError: it failed, and said why.
        """
        arrival = self._socket.recv()
        if not arrival.done():
            await asyncio.wait((arrival, self._death), return_when=asyncio.FIRST_COMPLETED)
        if not arrival.done():
            await asyncio.wait((arrival,), timeout=0.5)  # its last word may still be on the way
        if not arrival.done():
            arrival.cancel()
            raise EngineDeadError(f"the engine process ended with status {self._death.result()}")
        message = decode_from_engine(arrival.result())
        if isinstance(message, Fatal):
            raise error_of(message.kind, message.message) or EngineDeadError(
                f"the engine failed: {message.kind}: {message.message}"
            )
        return message

    async def stop(self) -> None:
        """Ask it to end, wait a little, then make it (at once while it loads: it reads nothing then); leaves nothing
        behind."""
        process = self._process
        if process is not None and process.returncode is None and not hasattr(self, "info"):
            process.kill()
            await process.wait()
        elif process is not None and process.returncode is None:
            with contextlib.suppress(zmq.ZMQError, TimeoutError):
                await asyncio.wait_for(self.send(Shutdown()), 1.0)
            try:
                await asyncio.wait_for(process.wait(), SHUTDOWN_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def error_of(name: str, message: str) -> MoesaicError | None:
    """The engine's error as an exception of the same kind here; None where it is none of ours.

    Args:
        name: of its class.
    """
    kind = getattr(errors, name, None)
    return kind(message) if isinstance(kind, type) and issubclass(kind, MoesaicError) else None

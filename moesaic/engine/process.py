"""The engine process: `python -m moesaic.engine.process SOCKET`, an `EngineStart` as JSON on stdin.

It ends when told, when the model cannot be loaded (saying why), or when its parent is gone: then stdin closes.
"""

import os
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING

import msgspec
import zmq

from moesaic.core.errors import DEBUG_VARIABLE, MoesaicError, RequestError, in_a_line
from moesaic.core.log import get_logger, setup_logging
from moesaic.core.messages import (
    Abort,
    Add,
    Answer,
    Ask,
    Fatal,
    Ready,
    Shutdown,
    StepEvents,
    decode_to_engine,
    encode,
)
from moesaic.core.request import SequenceUpdate
from moesaic.core.threads import settle_waiting
from moesaic.engine.supervisor import EngineStart
from moesaic.models.registry import ModelRegistry

if TYPE_CHECKING:
    from moesaic.engine.engine import Engine

logger = get_logger(__name__)


def main() -> int:
    """Load the engine, say so, serve until told to stop. Returns the exit status."""
    setup_logging()
    settle_waiting()
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    start = msgspec.json.decode(sys.stdin.readline(), type=EngineStart)
    threading.Thread(target=_end_with_parent, args=(sys.argv[1],), daemon=True).start()
    socket = zmq.Context().socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.setsockopt(zmq.SNDHWM, 0)  # a slow front end must not hold up a step
    socket.connect(sys.argv[1])
    try:
        from moesaic.engine.engine import Engine

        ModelRegistry.take_over(start.registrations)
        engine = Engine(start.args)
        socket.send(encode(Ready(engine.info)))
        _serve(engine, socket)
    except Exception as error:
        if in_a_line(error) is None or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            logger.exception("the engine failed")
        message = "; ".join([str(error), *getattr(error, "__notes__", [])])
        socket.send(encode(Fatal(type(error).__name__, message)))
        return 1
    finally:
        socket.close()
    return 0


def _end_with_parent(address: str) -> None:
    """The parent holds our stdin open; when it ends, however it ends, so do we, and the folder of its socket."""
    while sys.stdin.buffer.raw.read(1):  # type: ignore[attr-defined]
        pass
    shutil.rmtree(os.path.dirname(address.removeprefix("ipc://")), ignore_errors=True)
    os._exit(0)


def _serve(engine: "Engine", socket: "zmq.Socket[bytes]") -> None:
    """Take in what has arrived, run a step, send one batch of events; sleep only when there is nothing to do."""
    while True:
        refused: list[SequenceUpdate] = []
        wait = 0 if engine.has_unfinished else None
        while socket.poll(wait):
            message = decode_to_engine(socket.recv())
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Ask):
                socket.send(encode(_answer(engine, message)))
            else:
                refused += _take(engine, message)
            wait = 0
        updates = refused + (engine.step() if engine.has_unfinished else [])
        moe = engine.summary() if engine.statistics.due else None
        socket.send(encode(StepEvents(updates, engine.stats, moe)))


def _answer(engine: "Engine", question: Ask) -> Answer:
    """What the engine says to a question; whatever goes wrong with it is told to the one who asked."""
    try:
        return Answer(question.id, engine.ask(question.kind, **question.arguments))
    except Exception as error:
        if not isinstance(error, MoesaicError):
            logger.exception("the question %r failed", question.kind)
        told = str(error) if isinstance(error, MoesaicError) else f"{type(error).__name__}: {error}"
        return Answer(question.id, None, told, type(error).__name__, getattr(error, "param", None))


def _take(engine: "Engine", message: Add | Abort) -> list[SequenceUpdate]:
    """Carry out one message; a request that the engine refuses is answered at once."""
    if isinstance(message, Abort):
        for request_id, index in message.sequences:
            engine.abort(request_id, index)
        return []
    request = message.request
    try:
        engine.add(request)
    except RequestError as error:
        return [
            SequenceUpdate(request.request_id, index, [], finish_reason="error", error=str(error))
            for index in range(request.params.n)
        ]
    return []


if __name__ == "__main__":
    sys.exit(main())

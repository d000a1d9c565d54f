"""A server's life: bind, load, serve, stop. Signals end it cleanly at any moment; a dead engine ends it with 1."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from importlib import import_module
from time import perf_counter

import uvicorn

from moesaic.core.errors import ConfigError
from moesaic.core.log import get_logger, setup_logging
from moesaic.engine.args import EngineArgs
from moesaic.engine.async_engine import AsyncEngine
from moesaic.entrypoints.server.banner import show_ready
from moesaic.entrypoints.server.settings import ServerArgs

logger = get_logger(__name__)
BACKLOG = 2048
APP_MODULE = "moesaic.entrypoints.server.app"  # FastAPI takes its time: imported while the model loads
DEAD_SECONDS = 3.0  # a server whose engine died answers 503 for so long, for balancers and people to see
MAX_PORT = 65535
NICENESS = 5
CANCEL_SECONDS = 5.0  # after the grace: for the last errors to reach their clients


def run_server(engine_args: EngineArgs, settings: ServerArgs) -> int:
    """Serve until told to stop.

    Returns:
        exit status: 0 after a signal, 1 after the engine died.

    Raises:
        ConfigError: the address cannot be used.
        MoesaicError: the engine cannot start, in its own words.
    """
    started = perf_counter()
    if settings.log_level is not None:
        os.environ["MOESAIC_LOG_LEVEL"] = settings.log_level  # the engine process inherits it
    setup_logging()
    _adopt_uvicorn_log()
    _make_folder(settings.moe_profile_dir)
    with _listening_socket(settings) as sock:  # first of all: a port in use shows before the model is loaded
        return asyncio.run(_serve(engine_args, settings, sock, started))


def _make_folder(folder: str | None) -> None:
    """Make the folder for recorded routes, so that what is wrong with it shows now."""
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--moe-profile-dir: cannot make {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--moe-profile-dir: {folder} may not be written in")


async def _serve(engine_args: EngineArgs, settings: ServerArgs, sock: socket.socket, started: float) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    importing = asyncio.create_task(asyncio.to_thread(import_module, APP_MODULE))
    engine = await _start(engine_args, stop)
    if engine is None:
        return 0
    try:
        await importing
        _listen(sock, settings)
        server = _Server(_uvicorn_config(engine, settings))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        show_ready(engine.info, settings, sock, perf_counter() - started)
        return await _until_over(engine, server, serving, stop, settings.grace_seconds)
    finally:
        await engine.shutdown()


def _uvicorn_config(engine: AsyncEngine, settings: ServerArgs) -> uvicorn.Config:
    from moesaic.entrypoints.server.app import create_app

    return uvicorn.Config(
        create_app(engine, settings),
        root_path=settings.root_path,
        lifespan="off",  # the engine was started before, where its errors can be told in a line
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.grace_seconds + CANCEL_SECONDS),
    )


def _yield_cores() -> None:
    """Where cores are few, this process gets them after the engine, whose steps it only reports."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


class _Server(uvicorn.Server):
    """uvicorn, whose signals are ours: it would die of them again once it has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _start(engine_args: EngineArgs, stop: asyncio.Event) -> AsyncEngine | None:
    """The engine once it is ready, or None when told to stop before."""
    starting = asyncio.create_task(AsyncEngine.start(engine_args))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        return starting.result()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return None


async def _until_over(
    engine: AsyncEngine, server: uvicorn.Server, serving: "asyncio.Task[None]", stop: asyncio.Event, grace: float
) -> int:
    """Serve until a signal or the engine's death; returns the exit status."""
    stopping = asyncio.create_task(stop.wait())
    dying = asyncio.create_task(engine.wait_dead())
    await asyncio.wait((stopping, dying, serving), return_when=asyncio.FIRST_COMPLETED)
    died = not stop.is_set()
    if dying.done() and died:
        logger.error("%s: answering 503 for %.0f s, then ending", dying.result(), DEAD_SECONDS)
        await asyncio.wait((stopping,), timeout=DEAD_SECONDS)
    server.should_exit = True  # takes in nothing new; what runs goes on
    await asyncio.wait((serving,), timeout=0 if died else grace)
    await engine.shutdown()  # what still runs ends with an error that says so
    await serving
    for task in (stopping, dying):
        task.cancel()
    return 1 if died else 0


# ---------------------------------------------------------------- the socket


@contextlib.contextmanager
def _listening_socket(settings: ServerArgs) -> Iterator[socket.socket]:
    """A bound socket; connections are refused until it listens. Raises ConfigError in one line."""
    sock = _bind_uds(settings.uds) if settings.uds else _bind_tcp(settings.host, settings.port)
    with contextlib.closing(sock):
        try:
            yield sock
        finally:
            if settings.uds:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(settings.uds)


def _bind_tcp(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MAX_PORT:  # the C library would take it modulo 65536
        raise ConfigError(f"port must be from 0 to {MAX_PORT}, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _in_use(host, port, error) from error
    return sock


def _bind_uds(path: str) -> socket.socket:
    """Takes the place of a socket file that nobody listens on any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            sock.connect(path)
            raise ConfigError(f"another server listens on {path}: choose another --uds")
        sock.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {error}") from error
    return sock


def _listen(sock: socket.socket, settings: ServerArgs) -> None:
    try:
        sock.listen(BACKLOG)
    except OSError as error:  # a server that was started at the same moment was faster
        raise _in_use(settings.host, settings.port, error) from error


def _in_use(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host")


def _adopt_uvicorn_log() -> None:
    """uvicorn's warnings and errors go where ours go; its chatter nowhere."""
    log = logging.getLogger("uvicorn")
    log.handlers = logging.getLogger("moesaic").handlers
    log.setLevel(logging.WARNING)
    log.propagate = False

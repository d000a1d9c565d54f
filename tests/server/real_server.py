"""A server as its users start it: `python -m moesaic serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

START_SECONDS = 120
# small enough for a busy machine: one thread, a small cache
SMALL = ("--threads", "1", "--kv-cache-memory", "64MiB")


class RealServer:
    """Starts on construction (on a free port unless `args` say otherwise) and ends with `stop` or the with block.

    Attributes:
        url: where it listens, once ready.
    """

    def __init__(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        wait: bool = True,
        module: str = "",
        cwd: str | Path | None = None,
    ) -> None:
        command = ["-m", module] if module else ["-m", "moesaic", "serve"]
        address = () if {"--port", "--uds"} & set(args) else ("--port", "0")
        environment = {k: v for k, v in os.environ.items() if k != "MOESAIC_API_KEY"} | (env or {})
        self.process = subprocess.Popen(
            [sys.executable, *command, *SMALL, *address, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [self._read(self.process.stdout, self.out), self._read(self.process.stderr, self.err)]
        self.url = ""
        if wait:
            self.wait_ready()

    @staticmethod
    def _read(stream, lines: list[str]) -> threading.Thread:
        """Pipes are read all the time: a full one would stop the server."""
        thread = threading.Thread(target=lambda: lines.extend(stream), daemon=True)
        thread.start()
        return thread

    def wait_ready(self) -> None:
        until(lambda: self.process.poll() is not None or any(line.startswith("ready: ") for line in self.out), self.log)
        found = re.search(r"^ready: (\S+) ", "".join(self.out), re.MULTILINE)
        assert found, self.log()
        self.url = found[1]

    @property
    def engine_pid(self) -> int:
        """The engine is the server's only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        [pid] = [int(child) for child in children]
        return pid

    def log(self) -> str:
        return "".join([*self.out, *self.err])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """The exit status, once it has ended and all its output is read."""
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return status

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> "RealServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def until(condition: Callable[[], bool], describe: Callable[[], str] = str, seconds: float = START_SECONDS) -> float:
    """Wait for `condition`; returns how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not after {seconds} s: {describe()}"
        time.sleep(0.02)
    return time.monotonic() - start


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False

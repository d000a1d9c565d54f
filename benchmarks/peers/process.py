"""The driver's end of a peer: a process of its own, so that memory and thread pools do not mix."""

import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers.protocol import Done, Load, Message, Ready, Refused, Work, receive, send

ROOT = Path(__file__).parent.parent.parent
LAST_WORDS = 5  # lines of a dead peer's stderr that are shown


class PeerError(Exception):
    """The peer cannot do it; the message says why."""


class Peer:
    """One engine in its process, loaded until `stop`.

    Attributes:
        version: what it says it is, once loaded.

    Raises:
        PeerError: it could not be started or loaded (not installed, say).
    """

    def __init__(self, name: str, python: str, load: Load) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (stop closes it)
        threads = str(load.threads)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            ready = self._ask(load)
        except BaseException:
            self.stop()
            raise
        assert isinstance(ready, Ready)
        self.version, self.load_seconds = ready.version, ready.seconds

    def run(self, work: Work) -> Done:
        """Do the work and time it; raises PeerError."""
        done = self._ask(work)
        assert isinstance(done, Done)
        return done

    def _ask(self, message: Message) -> Message:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, message)
            answer = receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise PeerError(f"its process ended with status {self._process.wait()}: {self._last_words()}")
        if isinstance(answer, Refused):
            raise PeerError(answer.reason)
        return answer

    def _last_words(self) -> str:
        self._stderr.seek(0)
        return " | ".join(self._stderr.read().splitlines()[-LAST_WORDS:])

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

"""A peer's process: `python -m benchmarks.peers.worker NAME`, driven over stdin and stdout."""

import os
import sys
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks.peers.protocol import Load, Ready, Refused, Work, receive, send


def main(name: str) -> None:
    """Load once, then do work until the driver closes the pipe."""
    # what libraries print to stdout must not end up between the messages
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Any = None
    while (message := receive(sys.stdin)) is not None:
        try:
            if isinstance(message, Load):
                start = perf_counter()
                engine = import_module(f"benchmarks.peers.engines.{name}").Engine(message)
                send(out, Ready(version=engine.version, seconds=perf_counter() - start))
            elif isinstance(message, Work):
                send(out, engine.run(message.prompts, message.output_len))
        except Exception as error:  # whatever another engine raises, the driver goes on without it
            send(out, Refused(reason=f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(sys.argv[1])

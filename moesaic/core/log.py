"""One logger, one format: `12:30:01 moesaic.engine: message` on stderr."""

import logging
import os
import sys

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name)


def setup_logging() -> None:
    """Send the package's log to stderr, at the level of MOESAIC_LOG_LEVEL (INFO when unset). Idempotent."""
    root = logging.getLogger("moesaic")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(os.environ.get("MOESAIC_LOG_LEVEL", "INFO").upper())
    root.propagate = False

"""Files that anyone may have written: opened so that nothing hangs, read so that little memory is taken. Torch-free."""

import errno
import json
import os
import stat
from typing import Any

from moesaic.core.collector import collector_paused

MAX_JSON_BYTES = 256 << 20  # of a whole file; a tokenizer of 256k tokens has 30 MB
MAX_JSON_VALUES = 3_000_000  # which become Python objects of some 60 bytes each; that tokenizer has 1.5 million


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of the file at `path`, for reading, which the caller closes.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder, of which reading might never end.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as e:  # a name with a NUL in it
        raise OSError(errno.EINVAL, f"no name of a file ({e})") from e
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def read_file(path: str | os.PathLike[str], most: int = MAX_JSON_BYTES) -> bytes:
    """All of a file. Raises OSError as `open_regular`, and of a file of more than `most` bytes."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and {most} at the most are read")
        return file.read(most)


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, is nested without end, or consists of more values than files here have.
    """
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MAX_JSON_VALUES:
        raise ValueError(f"it seems to hold {values} values, and {MAX_JSON_VALUES} at the most are read")
    text = data.decode()
    try:
        with collector_paused():
            return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{e.msg} in line {e.lineno}, column {e.colno}") from e
    except RecursionError as e:
        raise ValueError("it is nested without end") from e
    except ValueError as e:
        raise ValueError(str(e).split(";")[0]) from e

"""Binding of the C++ backend (csrc/): loads the shared library when first asked, and says why when it cannot."""

import ctypes
from functools import cache
from importlib.resources import files
from pathlib import Path

ABI_VERSION = 1
LIBRARY = "libmoesaic_cpu.so"


class Unavailable(Exception):
    """The library cannot be used; the message is the reason."""


@cache
def library() -> ctypes.CDLL:
    """The shared library, loaded once. Raises Unavailable."""
    # An editable install builds outside the source tree; its importer knows where, through the package's resources.
    path = Path(str(files(__name__) / LIBRARY))
    if not path.is_file():
        raise Unavailable(f"{LIBRARY} is not built; `pip install` of the package builds it")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as e:
        raise Unavailable(f"{path} does not load: {e}") from e
    version = loaded.moesaic_abi_version()
    if version != ABI_VERSION:
        raise Unavailable(f"{path} has interface version {version}, this package needs {ABI_VERSION}: build it again")
    loaded.moesaic_isa.restype = ctypes.c_char_p
    return loaded


def isa() -> str:
    """The instruction set that the C++ kernels would use here, or `unavailable: reason`."""
    try:
        name: bytes = library().moesaic_isa()
    except Unavailable as reason:
        return f"unavailable: {reason}"
    return name.decode()

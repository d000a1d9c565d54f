"""The shared libraries of the C++ backend (csrc/): which there are, which the machine can run, and loading one.

`MOESAIC_ISA` takes another instruction set than the best (avx512_bf16, avx512, avx2, portable);
`MOESAIC_CPU_LIBRARIES` names a folder to load from, such as one built with sanitizers. `MOESAIC_EMULATED_ISAS` takes
every library of it for one that runs here: AVX-512 emulated, by the CMake option MOESAIC_EMULATE_AVX512.
"""

import ctypes
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from moesaic.core.errors import ConfigError, unknown_name

ABI_VERSION = 10
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")  # best first


class Unavailable(Exception):
    """The library cannot be used; the message is the reason."""


@cache
def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run and that have a library, best first. Raises Unavailable."""
    detect = _load("libmoesaic_cpu.so")
    detect.moesaic_isas.restype = ctypes.c_char_p
    names: bytes = detect.moesaic_isas()
    runnable = ISAS if os.environ.get("MOESAIC_EMULATED_ISAS") else names.decode().split()
    return tuple(name for name in runnable if _path(f"libmoesaic_cpu_{name}.so").is_file())


def isa() -> str:
    """The instruction set in use: the best, or what MOESAIC_ISA says.

    Raises:
        Unavailable: no library is built.
        ConfigError: MOESAIC_ISA names none, or one that this machine cannot run.
    """
    usable = supported_isas()
    if not usable:
        raise Unavailable("no library of kernels is built; `pip install` of the package builds them")
    wanted = os.environ.get("MOESAIC_ISA") or usable[0]
    if wanted not in ISAS:
        raise ConfigError(f"{unknown_name('MOESAIC_ISA', wanted, ISAS)}; there are {', '.join(ISAS)}")
    if wanted not in usable:
        raise ConfigError(f"MOESAIC_ISA is {wanted}, but this machine can run {', '.join(usable)}")
    return wanted


def library() -> ctypes.CDLL:
    """The kernels for the instruction set in use. Raises Unavailable or ConfigError."""
    return load(isa())


@cache
def load(name: str) -> ctypes.CDLL:
    """The kernels for one instruction set, loaded once; several may be loaded side by side. Raises Unavailable."""
    import torch  # noqa: F401  its libgomp must be the one that our library finds: two pools would fight for the cores

    loaded = _load(f"libmoesaic_cpu_{name}.so")
    version = loaded.moesaic_abi_version()
    if version != ABI_VERSION:
        raise Unavailable(f"{loaded._name} has interface version {version}, this package needs {ABI_VERSION}: build it")
    return loaded


def _path(file_name: str) -> Path:
    folder = os.environ.get("MOESAIC_CPU_LIBRARIES")
    if folder:
        return Path(folder) / file_name
    # An editable install builds outside the source tree; its importer knows where, through the package's resources.
    return Path(str(files("moesaic.kernels.cpu") / file_name))


def _load(file_name: str) -> ctypes.CDLL:
    path = _path(file_name)
    if not path.is_file():
        raise Unavailable(f"{file_name} is not built; `pip install` of the package builds it")
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise Unavailable(f"{path} does not load: {e}") from e


def describe() -> str:
    """The instruction set in use, or `unavailable: reason`."""
    try:
        return isa()
    except Unavailable as reason:
        return f"unavailable: {reason}"

"""What this machine can do at most, measured beside what is compared with it.

Memory's bandwidth on shared machines jumps between states within seconds, so it is read right before, between and after
the runs of a benchmark, with as many threads; figures are set against what was read beside them.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any

import torch

from moesaic.core.errors import MoesaicError
from moesaic.kernels.cpu.arena import allocate
from moesaic.kernels.cpu.library import Unavailable, library

STREAM_BYTES = 256 << 20  # many times any cache
PASSES = 3
GEMM_SIZE = 1024
GEMM_REPEATS = 4
GIGA = 1e9


class _StreamRead(ctypes.Structure):
    """`moesaic_stream_read_args`."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_int64))


class Stream:
    """Reads a buffer of huge pages from end to end, with torch's threads.

    Attributes:
        reader: what reads it: "moesaic_stream_read", or torch where no library is built, slower than memory allows.
    """

    def __init__(self, size: int = STREAM_BYTES) -> None:
        self._values = allocate(size).view(torch.float32)
        self._values.fill_(1.0)  # pages that nobody wrote are all one page, which stays in the cache
        function = _stream_read()
        self.reader = "torch.sum" if function is None else "moesaic_stream_read"
        self._read: Callable[[], object] = self._values.sum if function is None else self._bind(function)
        self._read()

    def _bind(self, function: Any) -> Callable[[], object]:
        self._arguments = _StreamRead(self._values.data_ptr(), self._values.nbytes)
        address = ctypes.addressof(self._arguments)
        return lambda: function(address)

    def read(self) -> float:
        """Bytes a second, as memory gives them now."""
        rates = []
        for _ in range(PASSES):
            start = perf_counter()
            self._read()
            rates.append(self._values.nbytes / (perf_counter() - start))
        return median(rates)


@cache
def _stream_read() -> Any:
    """The library's function, or None."""
    try:
        function = library().moesaic_stream_read
    except (Unavailable, AttributeError):
        return None
    function.restype = None
    function.argtypes = (ctypes.c_void_p,)
    return function


@cache
def cpu_flags() -> frozenset[str]:
    """What the CPU says it can do; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
    except OSError:
        return frozenset()
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own; where it does not, oneDNN's bf16 is no limit."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def gemm_kind(weights: str) -> str:
    """The product whose peak bounds weights of this kind: fp32, bf16 or u8s8."""
    if weights == "w8a8":
        return "u8s8"
    return "bf16" if weights != "f32" and has_bf16() else "fp32"


def gemm_peak(kind: str) -> float:
    """Operations a second of torch's (oneDNN's, MKL's) product of square matrices: the best of a few.

    Raises:
        MoesaicError: torch has no such product here.
    """
    try:
        run = _product(kind)
        run()
    except (AttributeError, RuntimeError) as error:
        raise MoesaicError(f"torch has no {kind} product on this machine: {error}") from error
    best = 0.0
    for _ in range(GEMM_REPEATS):
        start = perf_counter()
        run()
        best = max(best, 2 * GEMM_SIZE**3 / (perf_counter() - start))
    return best


@cache
def _product(kind: str) -> Callable[[], object]:
    """A product of two square matrices, ready to run again and again."""
    shape = (GEMM_SIZE, GEMM_SIZE)
    draw = torch.Generator().manual_seed(0)
    if kind in ("fp32", "bf16"):
        a, b = (torch.randn(shape, generator=draw) for _ in range(2))
        if kind == "bf16":
            a, b = a.bfloat16(), b.bfloat16()
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)
    if kind != "u8s8":
        raise MoesaicError(f"no product is called {kind!r}: fp32, bf16 or u8s8")
    codes = torch.randint(0, 128, shape, generator=draw, dtype=torch.uint8)
    weights = torch.randint(-64, 64, shape, generator=draw, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weights, list(shape))
    scales, zeros = torch.ones(GEMM_SIZE), torch.zeros(GEMM_SIZE, dtype=torch.int64)
    linear = torch.ops.onednn.qlinear_pointwise
    return lambda: linear(codes, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

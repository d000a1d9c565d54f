"""How Python calls a kernel: a struct of pointers and sizes, filled and passed by address.

One Python function for an operation, one `ctypes.Structure` for its arguments, the mirror of the struct in csrc/abi/.
`Call` is the one way in, so that a step's calls can be recorded and replayed by C++ (`kernels.cpu.replay`).
"""

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from moesaic.kernels.cpu.library import library

Count = ctypes.POINTER(ctypes.c_int64)


class Format(ctypes.Structure):
    """`moesaic_format`."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("offsets", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class Matrix(ctypes.Structure):
    """`moesaic_matrix`."""

    _fields_ = (("data", ctypes.c_void_p), ("rows", ctypes.c_int64), ("cols", ctypes.c_int64), ("format", Format))


KINDS = {"f32": 0, "f16": 1, "bf16": 2, "w8": 3, "w4": 4, "w8a8": 5, "mxfp4": 6}
FLOAT_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Kernel:
    """A C function `void moesaic_<name>(const arguments*)`, resolved when first called."""

    _all: ClassVar[list["Kernel"]] = []
    recorder: ClassVar[Any] = None  # a `replay.Recorder` that takes calls down instead of making them

    def __init__(self, name: str) -> None:
        self.name = name
        self._function: Any = None
        self._all.append(self)

    @classmethod
    def forget(cls) -> None:
        """Resolve every function anew at its next call: MOESAIC_ISA has changed."""
        for kernel in cls._all:
            kernel._function = None

    def __call__(self, arguments: ctypes.Structure) -> None:
        """Run it with these arguments; they may be changed or dropped afterwards."""
        function = self._function or self.resolve()
        if Kernel.recorder is not None:
            Kernel.recorder.record(self, arguments)
        else:
            function(ctypes.addressof(arguments))

    def resolve(self) -> Any:
        """The C function."""
        if self._function is None:
            self._function = getattr(library(), f"moesaic_{self.name}")
            self._function.restype = None
            self._function.argtypes = (ctypes.c_void_p,)
        return self._function


def seam() -> None:
    """A place where a recording may be interrupted: between routing and experts, whose weights may lie elsewhere."""
    if Kernel.recorder is not None:
        Kernel.recorder.cut()


def pointer(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """The address of a contiguous tensor on the CPU; None for None.

    Raises:
        ValueError: it is elsewhere, of another dtype, or not contiguous: a kernel would read the wrong bytes.
    """
    if tensor is None:
        return None
    if tensor.dtype is not dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"a kernel needs a contiguous {dtype} tensor on the CPU, got {tensor.dtype} on {tensor.device}, "
            f"shape {list(tensor.shape)}, strides {list(tensor.stride())}"
        )
    return tensor.data_ptr()

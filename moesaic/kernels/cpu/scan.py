"""The scan of numbers that C++ makes while they lie in the cache."""

import ctypes

from torch import Tensor

from moesaic.kernels.cpu.calls import FLOAT_KINDS, KINDS, Kernel

BYTES = KINDS["w8"]  # which the scan hashes and looks no further at


class ScanArgs(ctypes.Structure):
    """`moesaic_scan_args`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("blank", ctypes.c_int32),
        ("nonfinite", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("squares", ctypes.c_double),
        ("hash", ctypes.c_uint64),
    )


_scan = Kernel("scan")


def scan(tensor: Tensor) -> ScanArgs:
    """What csrc/abi/scan.h says of a contiguous tensor on the CPU: of float32, float16, bfloat16, or of single bytes.

    Raises:
        Unavailable: there is no library of kernels.
    """
    dtype = FLOAT_KINDS.get(tensor.dtype, BYTES)
    if not tensor.is_contiguous() or tensor.device.type != "cpu" or (dtype == BYTES and tensor.element_size() != 1):
        raise ValueError(f"a scan is of contiguous floats or bytes, got {tensor.dtype}, strides {tensor.stride()}")
    arguments = ScanArgs(data=tensor.data_ptr(), count=tensor.numel(), dtype=dtype)
    _scan(arguments)
    return arguments

"""Reading, scanning and packing in one call (csrc/kernels/pour.cpp): the structs of csrc/abi/pour.h, field by field."""

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import FLOAT_KINDS, Kernel, pointer
from moesaic.kernels.cpu.pack_arguments import PackArgs
from moesaic.kernels.cpu.packed import Sink
from moesaic.kernels.cpu.scan import ScanArgs

SHORT = -1  # the file ended before


class PourPiece(ctypes.Structure):
    """`moesaic_pour_piece`."""

    _fields_ = (
        ("pack", PackArgs),
        ("scan", ScanArgs),
        ("out", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
        ("file", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )


class PourArgs(ctypes.Structure):
    """`moesaic_pour_args`."""

    _fields_ = (("pieces", ctypes.POINTER(PourPiece)), ("count", ctypes.c_int64))


_pour = Kernel("pour")


@dataclass(frozen=True)
class Rows:
    """Rows that lie one behind the other in a file, and where they go.

    Attributes:
        file: its descriptor.
        offset: of the first, in bytes.
        dtype: of theirs: float32, float16 or bfloat16.
        into: a sink, or a contiguous tensor of that dtype.
    """

    file: int
    offset: int
    dtype: torch.dtype
    into: Sink | Tensor


def pour(rows: Sequence[Rows]) -> list[ScanArgs | OSError | EOFError]:
    """Read, scan and pack, by as many threads as torch has: what the scan of each says, or why it was not read.

    (EOFError: its file ended before.)

    Raises:
        Unavailable: there is no library of kernels.
    """
    pieces = (PourPiece * len(rows))(*map(_piece, rows))
    _pour(PourArgs(pieces, len(pieces)))
    return [_outcome(piece) for piece in pieces]


def _outcome(piece: PourPiece) -> ScanArgs | OSError | EOFError:
    error: int = piece.error
    if error == 0:
        scan: ScanArgs = piece.scan
        return scan
    return EOFError("the file ended") if error == SHORT else OSError(error, os.strerror(error))


def _piece(rows: Rows) -> PourPiece:
    into, dtype = rows.into, FLOAT_KINDS[rows.dtype]
    scan = ScanArgs(count=math.prod(into.shape), dtype=dtype)
    if isinstance(into, Tensor):
        return PourPiece(PackArgs(), scan, pointer(into, rows.dtype), rows.offset, rows.file)
    return PourPiece(into.arguments(None, 0, dtype), scan, None, rows.offset, rows.file)

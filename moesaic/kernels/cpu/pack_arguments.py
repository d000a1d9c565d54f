"""The structs of csrc/abi/pack.h, field by field."""

import ctypes

from moesaic.kernels.cpu.calls import Matrix


class PackArgs(ctypes.Structure):
    """`moesaic_pack_args`."""

    _fields_ = (
        ("matrix", Matrix),
        ("source", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("part", ctypes.c_int32),
        ("first_row", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("alone", ctypes.c_int32),
    )


class PackCodesArgs(ctypes.Structure):
    """`moesaic_pack_codes_args`."""

    _fields_ = (
        ("matrix", Matrix),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("part", ctypes.c_int32),
        ("alone", ctypes.c_int32),
        ("first_row", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
    )


class UnpackArgs(ctypes.Structure):
    """`moesaic_unpack_args`."""

    _fields_ = (
        ("matrix", Matrix),
        ("out", ctypes.c_void_p),
        ("first_row", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
    )


class MatrixBytesArgs(ctypes.Structure):
    """`moesaic_matrix_bytes_args`."""

    _fields_ = (("matrix", Matrix), ("bytes", ctypes.c_int64))


class PackVersionArgs(ctypes.Structure):
    """`moesaic_pack_version_args`."""

    _fields_ = (("layout", ctypes.c_int32), ("quantiser", ctypes.c_int32))

"""Mirrors of the structs in csrc/abi/recurrent.h."""

import ctypes

from moesaic.kernels.cpu.calls import Count

_P, _I64, _I32, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Stateful(ctypes.Structure):
    """`moesaic_stateful`."""

    _fields_ = (("query_start", _P), ("positions", _P), ("slots", _P))


class Heads(ctypes.Structure):
    """`moesaic_heads`."""

    _fields_ = (("data", _P), ("stride", _I64), ("head_stride", _I64))


class MatrixState(ctypes.Structure):
    """`moesaic_matrix_state`."""

    _fields_ = (
        *(("state", _P), ("out", _P)),
        *((name, _I32) for name in ("heads", "key_heads", "key_dim", "value_dim")),
    )


class ConvArguments(ctypes.Structure):
    """`moesaic_causal_conv_args`."""

    _fields_ = (
        *(("rows", Count), ("sequences", Count)),
        *((name, _P) for name in ("x", "weight", "bias", "state", "out")),
        ("batch", Stateful),
        *(("x_stride", _I64), ("channels", _I64), ("width", _I32), ("silu", _I32)),
    )


class DeltaArguments(ctypes.Structure):
    """`moesaic_gated_delta_args`."""

    _fields_ = (
        *(("rows", Count), ("sequences", Count)),
        *((name, Heads) for name in ("query", "key", "value", "decay", "beta")),
        *(("rate", _P), ("bias", _P)),
        *(("state", MatrixState), ("batch", Stateful)),
        *(("channels", _I32), ("eps", _F)),
    )


class SsdArguments(ctypes.Structure):
    """`moesaic_ssd_scan_args`."""

    _fields_ = (
        *(("rows", Count), ("sequences", Count)),
        *((name, Heads) for name in ("x", "b", "c", "step")),
        *((name, _P) for name in ("rate", "bias", "skip")),
        *(("state", MatrixState), ("batch", Stateful)),
        *(("least", _F), ("most", _F)),
    )


class LinearArguments(ctypes.Structure):
    """`moesaic_linear_attention_args`."""

    _fields_ = (
        *(("rows", Count), ("sequences", Count)),
        *((name, Heads) for name in ("query", "key", "value")),
        ("decay", _P),
        *(("state", MatrixState), ("batch", Stateful)),
    )


class ScanArguments(ctypes.Structure):
    """`moesaic_selective_scan_args`."""

    _fields_ = (
        *(("rows", Count), ("sequences", Count)),
        *((name, _P) for name in ("x", "step", "b", "c", "gate", "rate", "bias", "skip", "state", "out")),
        ("batch", Stateful),
        *(("x_stride", _I64), ("gate_stride", _I64), ("channels", _I64), ("state_size", _I32)),
    )


class NormArguments(ctypes.Structure):
    """`moesaic_gated_norm_args`."""

    _fields_ = (
        ("rows", Count),
        *((name, _P) for name in ("x", "gate", "weight", "out")),
        *((name, _I64) for name in ("size", "group", "weight_size", "gate_stride")),
        *(("eps", _F), ("silu", _I32), ("gate_first", _I32)),
    )

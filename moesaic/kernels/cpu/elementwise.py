"""Sums, gates and caps between products in C++. Arguments and results are those of `kernels.reference_elementwise`, in
fp32."""

import ctypes

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import Count, Kernel, pointer


class MixArguments(ctypes.Structure):
    """`moesaic_mix_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("a", ctypes.c_float),
        ("b", ctypes.c_float),
    )


class GateArguments(ctypes.Structure):
    """`moesaic_apply_gate_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("gate_stride", ctypes.c_int64),
        ("kind", ctypes.c_int32),
    )


class SoftcapArguments(ctypes.Structure):
    """`moesaic_softcap_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("cap", ctypes.c_float),
    )


class BiasArguments(ctypes.Structure):
    """`moesaic_add_bias_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
    )


class IdentityArguments(ctypes.Structure):
    """`moesaic_add_identity_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("top_k", ctypes.c_int32),
        ("first", ctypes.c_int32),
    )


GATES = {"sigmoid": 0, "softplus": 1, "identity": 2}

_mix, _apply_gate, _softcap = Kernel("mix"), Kernel("apply_gate"), Kernel("softcap")
_add_identity = Kernel("add_identity")
_add_bias = Kernel("add_bias")


def mix(x: Tensor, y: Tensor | None, a: float = 1.0, b: float = 1.0, gate: Tensor | None = None) -> Tensor:
    """`a * x + b * sigmoid(gate) * y`: `[T, H]`, `[T, H]`, `[T, 1]` -> `[T, H]`."""
    num_tokens, size = x.shape
    if (y is not None and y.shape != x.shape) or (gate is not None and gate.shape != (num_tokens, 1)):
        shapes = [None if t is None else list(t.shape) for t in (x, y, gate)]
        raise ValueError(f"x, y and gate are {shapes}, expected [T, H], [T, H] and [T, 1]")
    out = torch.empty_like(x)
    rows = ctypes.c_int64(num_tokens)
    _mix(MixArguments(ctypes.pointer(rows), pointer(x), pointer(y), pointer(gate), pointer(out), size, a, b))
    return out


def apply_gate(x: Tensor, gate: Tensor, kind: str = "sigmoid") -> Tensor:
    """`x * f(gate)`: `[T, N]`, gate `[T, N]` or `[T, N / g]`, one for g neighbours -> `[T, N]`.

    The gate may be some columns of a wider tensor.
    """
    num_tokens, size = x.shape
    if gate.shape[0] != num_tokens or not gate.shape[1] or size % gate.shape[1] or gate.stride(1) != 1:
        raise ValueError(f"a gate {list(gate.shape)}, strides {gate.stride()}, is not for {list(x.shape)}")
    if gate.dtype is not torch.float32 or gate.device.type != "cpu":
        raise ValueError(f"a gate must be float32 on the CPU, got {gate.dtype} on {gate.device}")
    out = torch.empty_like(x)
    rows = ctypes.c_int64(num_tokens)
    group = size // gate.shape[1]
    _apply_gate(
        GateArguments(
            ctypes.pointer(rows),
            pointer(x),
            gate.data_ptr(),
            pointer(out),
            size,
            group,
            gate.stride(0),
            GATES[kind],
        )
    )
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`: `[T, N]` -> `[T, N]`."""
    out = torch.empty_like(x)
    rows = ctypes.c_int64(x.shape[0])
    _softcap(SoftcapArguments(ctypes.pointer(rows), pointer(x), pointer(out), x.shape[1], cap))
    return out


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """`x + bias`: `[T, N]`, `[N]` -> `[T, N]`."""
    if bias.shape != x.shape[1:]:
        raise ValueError(f"a bias {list(bias.shape)} is not for {list(x.shape)}")
    out = torch.empty_like(x)
    rows = ctypes.c_int64(x.shape[0])
    _add_bias(BiasArguments(ctypes.pointer(rows), pointer(x), pointer(bias), pointer(out), x.shape[1]))
    return out


def add_identity(x: Tensor, y: Tensor, ids: Tensor, weights: Tensor, first: int) -> Tensor:
    """`x + (sum of weights whose ids are at least first) * y`: `[T, H]`, `[T, H]`, `[T, k]`, `[T, k]` -> `[T, H]`."""
    num_tokens, size = x.shape
    if y.shape != x.shape or ids.shape != weights.shape or ids.shape[0] != num_tokens:
        shapes = [list(tensor.shape) for tensor in (x, y, ids, weights)]
        raise ValueError(f"x, y, ids and weights are {shapes}, expected [T, H] twice and [T, k] twice")
    out = torch.empty_like(x)
    rows = ctypes.c_int64(num_tokens)
    _add_identity(
        IdentityArguments(
            ctypes.pointer(rows),
            pointer(x),
            pointer(y),
            pointer(ids, torch.int32),
            pointer(weights),
            pointer(out),
            size,
            ids.shape[1],
            first,
        )
    )
    return out

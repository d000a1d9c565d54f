"""Layers with a state of fixed size for each sequence, in C++ (csrc/abi/recurrent.h).

Arguments and results are those of `kernels.reference_recurrent`, in fp32.
"""

import ctypes

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.cpu.calls import Count, Kernel, pointer


class Stateful(ctypes.Structure):
    """`moesaic_stateful`."""

    _fields_ = (("query_start", ctypes.c_void_p), ("positions", ctypes.c_void_p), ("slots", ctypes.c_void_p))


class ConvArguments(ctypes.Structure):
    """`moesaic_causal_conv_args`."""

    _fields_ = (
        ("rows", Count),
        ("sequences", Count),
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("batch", Stateful),
        ("x_stride", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("width", ctypes.c_int32),
        ("silu", ctypes.c_int32),
    )


WIDEST = 64  # MOST of csrc/kernels/causal_conv.cpp

_causal_conv = Kernel("causal_conv")


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, batch: Batch, silu: bool = True
) -> Tensor:
    """`[T, C]`, `[width, C]`, `[C]` -> `[T, C]`; `state` `[slots, width - 1, C]` is written."""
    num_tokens, channels = x.shape
    width = weight.shape[0]
    if weight.shape[1:] != (channels,) or state.shape[1:] != (width - 1, channels) or not 2 <= width <= WIDEST:
        raise ValueError(
            f"x is {list(x.shape)}, weight {list(weight.shape)}, state {list(state.shape)}, expected [T, C], "
            f"[width, C] and [slots, width - 1, C] with a width from 2 to {WIDEST}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"a bias {list(bias.shape)} for {channels} channels")
    out = torch.empty(num_tokens, channels)
    rows, sequences, stateful = _batch(batch, num_tokens)
    _causal_conv(
        ConvArguments(
            ctypes.pointer(rows),
            ctypes.pointer(sequences),
            columns(x),
            pointer(weight),
            pointer(bias),
            pointer(state),
            out.data_ptr(),
            stateful,
            x.stride(0),
            channels,
            width,
            silu,
        )
    )
    return out


def columns(x: Tensor) -> int:
    """The address of some columns `[T, n]` of a tensor whose rows are dense. Raises ValueError."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or (x.shape[-1] > 1 and x.stride(-1) != 1):
        raise ValueError(f"a kernel needs float32 rows on the CPU, got {x.dtype} on {x.device}, strides {x.stride()}")
    return x.data_ptr()


def _batch(batch: Batch, num_tokens: int) -> tuple[ctypes.c_int64, ctypes.c_int64, Stateful]:
    """The batch as kernels read it: tokens, sequences, and the rest."""
    slots = batch.state_slots
    if slots is None:
        raise ValueError("the batch says not where its sequences' states lie")
    if num_tokens != batch.num_tokens:
        raise ValueError(f"{num_tokens} rows for a batch of {batch.num_tokens} tokens")
    stateful = Stateful(*(pointer(t, torch.int64) for t in (batch.query_start, batch.positions, slots)))
    return ctypes.c_int64(num_tokens), ctypes.c_int64(slots.shape[0]), stateful

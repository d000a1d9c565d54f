"""Layers with a state of fixed size for each sequence, in C++ (csrc/abi/recurrent.h).

Arguments and results are those of `kernels.reference_recurrent`, in fp32.
"""

import ctypes

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.cpu.calls import Kernel, pointer
from moesaic.kernels.cpu.recurrent_arguments import (
    ConvArguments,
    DeltaArguments,
    Heads,
    LinearArguments,
    MatrixState,
    NormArguments,
    ScanArguments,
    SsdArguments,
    Stateful,
)
from moesaic.kernels.state_cache import STATE_COLUMNS

WIDEST = 64  # convolution: MOST of csrc/kernels/causal_conv.cpp
MOST_KEYS = 256  # rows of a matrix state: MOST of csrc/kernels/matrix_state.cpp

_causal_conv, _gated_delta, _ssd_scan = Kernel("causal_conv"), Kernel("gated_delta"), Kernel("ssd_scan")
_linear_attention, _selective_scan = Kernel("linear_attention"), Kernel("selective_scan")
_gated_norm = Kernel("gated_norm")


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
    _check(channels, bias=bias)
    out = torch.empty(num_tokens, channels)
    counts = _Counts(batch, num_tokens)
    _causal_conv(
        ConvArguments(
            *counts.pointers,
            _columns(x),
            pointer(weight),
            pointer(bias),
            pointer(state),
            out.data_ptr(),
            counts.stateful,
            x.stride(0),
            channels,
            width,
            silu,
        )
    )
    return out


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    rate: Tensor,
    bias: Tensor,
    state: Tensor,
    batch: Batch,
    eps: float = 1e-6,
) -> Tensor:
    """`[T, G, K]` twice, `[T, H, V]`, `[T, H, 1 or K]`, `[T, H, 1]` -> `[T, H, V]`; `state` is written."""
    num_tokens, heads, _ = value.shape
    channels = decay.shape[2]
    if channels not in (1, key.shape[2]) or decay.shape[:2] != value.shape[:2] or beta.shape != (num_tokens, heads, 1):
        raise ValueError(
            f"decay is {list(decay.shape)} and beta {list(beta.shape)} for values {list(value.shape)} and keys "
            f"{list(key.shape)}"
        )
    _check(heads, rate=rate)
    _check(heads * channels, bias=bias)
    out = torch.empty(value.shape)
    counts = _Counts(batch, num_tokens)
    _gated_delta(
        DeltaArguments(
            *counts.pointers,
            _heads(query),
            _heads(key),
            _heads(value),
            _heads(decay),
            _heads(beta),
            pointer(rate),
            pointer(bias),
            _matrix_state(state, out, query, key),
            counts.stateful,
            channels,
            eps,
        )
    )
    return out


def ssd_scan(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    step: Tensor,
    rate: Tensor,
    bias: Tensor,
    skip: Tensor,
    state: Tensor,
    batch: Batch,
    limits: tuple[float, float] = (0.0, float("inf")),
) -> Tensor:
    """`[T, H, P]`, `[T, G, N]` twice, `[T, H, 1]` -> `[T, H, P]`; `state` is written."""
    num_tokens, heads, _ = x.shape
    if step.shape != (num_tokens, heads, 1):
        raise ValueError(f"steps are {list(step.shape)} for {list(x.shape)}")
    _check(heads, rate=rate, bias=bias, skip=skip)
    out = torch.empty(x.shape)
    counts = _Counts(batch, num_tokens)
    _ssd_scan(
        SsdArguments(
            *counts.pointers,
            _heads(x),
            _heads(b),
            _heads(c),
            _heads(step),
            pointer(rate),
            pointer(bias),
            pointer(skip),
            _matrix_state(state, out, c, b),
            counts.stateful,
            *limits,
        )
    )
    return out


def linear_attention(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor, batch: Batch) -> Tensor:
    """`[T, G, K]` twice, `[T, H, V]`, `[H]` -> `[T, H, V]`; `state` is written."""
    _check(value.shape[1], decay=decay)
    out = torch.empty(value.shape)
    counts = _Counts(batch, value.shape[0])
    _linear_attention(
        LinearArguments(
            *counts.pointers,
            _heads(query),
            _heads(key),
            _heads(value),
            pointer(decay),
            _matrix_state(state, out, query, key),
            counts.stateful,
        )
    )
    return out


def selective_scan(
    x: Tensor,
    step: Tensor,
    b: Tensor,
    c: Tensor,
    gate: Tensor,
    rate: Tensor,
    bias: Tensor,
    skip: Tensor,
    state: Tensor,
    batch: Batch,
) -> Tensor:
    """`[T, D]` twice, `[T, N]` twice, `[T, D]` -> `[T, D]`; `state` is written."""
    num_tokens, channels = x.shape
    size = rate.shape[1]
    if {step.shape, gate.shape} != {x.shape} or {b.shape, c.shape} != {torch.Size((num_tokens, size))}:
        shapes = [list(t.shape) for t in (x, step, gate, b, c)]
        raise ValueError(
            f"x, step, gate, b and c are {shapes}, expected [T, D] and [T, N] for rates {[size, channels]}"
        )
    if rate.shape != (-(-channels // STATE_COLUMNS), size, STATE_COLUMNS) or state.shape[1:] != (1, *rate.shape):
        raise ValueError(f"rates are {list(rate.shape)}, states {list(state.shape)}, for {channels} channels")
    _check(channels, bias=bias, skip=skip)
    out = torch.empty(num_tokens, channels)
    counts = _Counts(batch, num_tokens)
    _selective_scan(
        ScanArguments(
            *counts.pointers,
            _columns(x),
            *(pointer(t) for t in (step, b, c)),
            _columns(gate),
            *(pointer(t) for t in (rate, bias, skip, state)),
            out.data_ptr(),
            counts.stateful,
            x.stride(0),
            gate.stride(0),
            channels,
            size,
        )
    )
    return out


def gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group: int, act: str = "silu", gate_first: bool = False
) -> Tensor:
    """`[T, N]` twice, `[N]` or `[group]` -> `[T, N]`."""
    num_tokens, size = x.shape
    if gate.shape != x.shape or size % group or weight.shape not in ((group,), (size,)):
        raise ValueError(
            f"x is {list(x.shape)}, gate {list(gate.shape)} and weight {list(weight.shape)} for groups of {group}"
        )
    out = torch.empty_like(x)
    rows = ctypes.c_int64(num_tokens)
    _gated_norm(
        NormArguments(
            ctypes.pointer(rows),
            pointer(x),
            _columns(gate),
            pointer(weight),
            out.data_ptr(),
            size,
            group,
            weight.shape[0],
            gate.stride(0),
            eps,
            act == "silu",
            gate_first,
        )
    )
    return out


class _Counts:
    """The batch as kernels read it: tokens and sequences, counted, and where their states lie."""

    def __init__(self, batch: Batch, num_tokens: int) -> None:
        slots = batch.state_slots
        if slots is None:
            raise ValueError("the batch says not where its sequences' states lie")
        if num_tokens != batch.num_tokens:
            raise ValueError(f"{num_tokens} rows for a batch of {batch.num_tokens} tokens")
        rows, sequences = ctypes.c_int64(num_tokens), ctypes.c_int64(slots.shape[0])
        self.pointers: tuple[ctypes._Pointer[ctypes.c_int64], ...] = (ctypes.pointer(rows), ctypes.pointer(sequences))
        self.stateful = Stateful(*(pointer(t, torch.int64) for t in (batch.query_start, batch.positions, slots)))


def _columns(x: Tensor) -> int:
    """The address of some columns `[..., n]` of a tensor whose rows are dense. Raises ValueError."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or (x.shape[-1] > 1 and x.stride(-1) != 1):
        raise ValueError(f"a kernel needs float32 rows on the CPU, got {x.dtype} on {x.device}, strides {x.stride()}")
    return x.data_ptr()


def _heads(x: Tensor) -> Heads:
    """`[T, heads, n]`, perhaps columns of a wider tensor."""
    return Heads(_columns(x), x.stride(0), x.stride(1))


def _matrix_state(state: Tensor, out: Tensor, query: Tensor, key: Tensor) -> MatrixState:
    """States `[slots, heads, blocks, K, 32]` of which outputs `[T, heads, V]` are read with queries `[T, G, K]`."""
    num_tokens, heads, value_dim = out.shape
    groups, key_dim = key.shape[1:]
    expected = (heads, -(-value_dim // STATE_COLUMNS), key_dim, STATE_COLUMNS)
    fits = state.shape[1:] == expected and query.shape == key.shape and key.shape[0] == num_tokens
    if not fits or heads % groups or key_dim > MOST_KEYS:
        raise ValueError(
            f"states are {list(state.shape)}, queries {list(query.shape)}, keys {list(key.shape)} for outputs "
            f"{list(out.shape)}: expected states [slots, {', '.join(map(str, expected))}] and at most {MOST_KEYS} rows"
        )
    return MatrixState(pointer(state), out.data_ptr(), heads, groups, key_dim, value_dim)


def _check(size: int, **vectors: Tensor | None) -> None:
    """Raise ValueError unless all of these have `size` numbers."""
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (size,):
            raise ValueError(f"{name} is {list(vector.shape)}, expected {[size]}")

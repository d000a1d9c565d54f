"""Products with one matrix of each token's chosen experts in C++ (csrc/kernels/expert_linear.cpp).

Arguments and meaning are those of `kernels.reference_expert_linear`; activations are fp32.
"""

import ctypes

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import Count, Kernel, pointer
from moesaic.kernels.cpu.matmul import Expert, PackedExperts

_TAIL = (
    ("slots", ctypes.POINTER(Expert)),
    ("slot_of", ctypes.c_void_p),
    ("inputs", ctypes.c_int64),
    ("outputs", ctypes.c_int64),
    ("group", ctypes.c_int64),
    ("num_experts", ctypes.c_int32),
    ("top_k", ctypes.c_int32),
)


class SpreadArguments(ctypes.Structure):
    """`moesaic_spread_linear_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *_TAIL,
    )


class GatherArguments(ctypes.Structure):
    """`moesaic_gather_linear_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *_TAIL,
    )


_spread, _gather = Kernel("spread_linear"), Kernel("gather_linear")


def spread_linear(x: Tensor, ids: Tensor, experts: PackedExperts, group: int) -> Tensor:
    """Each chosen expert's first matrix times the token: `[T, K]`, `[T, k]` -> `[T, N / group, k, group]`."""
    inputs, outputs = experts.hidden_size, experts.intermediate_size
    if experts.gated:
        raise ValueError("spread_linear is for experts whose first matrix is not gated")
    if x.dim() != 2 or x.shape[1] != inputs or ids.dim() != 2 or len(ids) != len(x):
        raise ValueError(f"x is {list(x.shape)} and ids are {list(ids.shape)}; the experts take [T, {inputs}]")
    if group < 1 or outputs % group:
        raise ValueError(f"groups of {group} do not make {outputs} outputs")
    num_tokens, k = ids.shape
    out = torch.empty(num_tokens, outputs // group, k, group)
    rows = ctypes.c_int64(num_tokens)
    _spread(
        SpreadArguments(
            ctypes.pointer(rows),
            pointer(x),
            pointer(ids, torch.int32),
            pointer(out),
            experts.table,
            pointer(experts.slot_of, torch.int32),
            inputs,
            outputs,
            group,
            len(experts.slot_of),
            k,
        )
    )
    return out


def gather_linear(x: Tensor, ids: Tensor, weights: Tensor, experts: PackedExperts) -> Tensor:
    """The weighted sum of each chosen expert's second matrix times the choice's numbers, in k order.

    `[T, K / group, k, group]`, `[T, k]`, `[T, k]` -> `[T, N]`.
    """
    inputs, outputs = experts.intermediate_size, experts.hidden_size
    if x.dim() != 4 or x.shape[1] * x.shape[3] != inputs or ids.shape != (len(x), x.shape[2]):
        raise ValueError(f"x is {list(x.shape)} and ids are {list(ids.shape)}; the experts take {inputs} numbers")
    if weights.shape != ids.shape:
        raise ValueError(f"ids are {list(ids.shape)} and weights {list(weights.shape)}")
    out = torch.empty(len(x), outputs)
    rows = ctypes.c_int64(len(x))
    _gather(
        GatherArguments(
            ctypes.pointer(rows),
            pointer(x),
            pointer(ids, torch.int32),
            pointer(weights),
            pointer(out),
            experts.table,
            pointer(experts.slot_of, torch.int32),
            inputs,
            outputs,
            x.shape[3],
            len(experts.slot_of),
            ids.shape[1],
        )
    )
    return out

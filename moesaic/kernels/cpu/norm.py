"""Norms, the embedding table and gathered rows in C++. Arguments and results are those of `kernels.reference_norm`,
in fp32: weights are converted once, when a layer is built."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import FLOAT_KINDS, Count, Format, Kernel, Matrix, pointer


class NormArguments(ctypes.Structure):
    """`moesaic_norm_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("alpha", ctypes.c_float),
        ("eps", ctypes.c_float),
    )


class EmbedArguments(ctypes.Structure):
    """`moesaic_embed_args`."""

    _fields_ = (
        ("rows", Count),
        ("ids", ctypes.c_void_p),
        ("table", Matrix),
        ("packed", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_void_p),
    )


class GatherRowsArguments(ctypes.Structure):
    """`moesaic_gather_rows_args`."""

    _fields_ = (
        ("rows", Count),
        ("indices", ctypes.c_void_p),
        ("x_rows", Count),
        ("x", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("out", ctypes.c_void_p),
    )


_rms_norm = Kernel("rms_norm")
_layer_norm = Kernel("layer_norm")
_embed = Kernel("embed")
_gather_rows = Kernel("gather_rows")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension: `[..., D]`, `[D]` -> `[..., D]`."""
    return _norm(_rms_norm, x, None, 1.0, weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension: `[..., D]` -> `[..., D]`."""
    return _norm(_layer_norm, x, None, 1.0, weight, bias, eps)


def add_rms_norm(
    hidden: Tensor, delta: Tensor | None, alpha: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`hidden + alpha * delta` `[T, H]`, written into `hidden`, and its `rms_norm`; a delta of None adds nothing."""
    return hidden, _norm(_rms_norm, hidden, delta, alpha, weight, None, eps)


def add_layer_norm(
    hidden: Tensor, delta: Tensor | None, alpha: float, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`hidden + alpha * delta` `[T, H]`, written into `hidden`, and its `layer_norm`; a delta of None adds nothing."""
    return hidden, _norm(_layer_norm, hidden, delta, alpha, weight, bias, eps)


def _norm(
    kernel: Kernel,
    x: Tensor,
    delta: Tensor | None,
    alpha: float,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    size = x.shape[-1]
    if weight.shape != (size,) or (bias is not None and bias.shape != (size,)):
        raise ValueError(f"a norm over {size} elements needs weights of this size, got {list(weight.shape)}")
    if delta is not None and delta.shape != x.shape:
        raise ValueError(f"{list(delta.shape)} cannot be added to {list(x.shape)}")
    out = torch.empty_like(x)
    rows = ctypes.c_int64(x.numel() // size if size else 0)
    kernel(
        NormArguments(
            ctypes.pointer(rows),
            pointer(x),
            pointer(delta),
            pointer(weight),
            pointer(bias),
            pointer(out),
            size,
            alpha,
            eps,
        )
    )
    return out


def embed(ids: Tensor, table: Any, scale: float = 1.0) -> Tensor:
    """Rows of the table, times `scale`: ids `[T]` int64 -> `[T, H]`.

    Args:
        table: `[V, H]` in float32, float16 or bfloat16, or a `PackedMatrix` of such a kind. An id outside it gives a
            row of NaN.
    """
    packed = not isinstance(table, Tensor)
    matrix = table.struct if packed else _plain_matrix(table)
    if matrix.format.kind > max(FLOAT_KINDS.values()) or matrix.format.gated:
        raise ValueError("an embedding is read from a table in float32, float16 or bfloat16, not from a quantised one")
    out = torch.empty(ids.numel(), matrix.cols)
    rows = ctypes.c_int64(ids.numel())
    _embed(EmbedArguments(ctypes.pointer(rows), pointer(ids, torch.int64), matrix, packed, scale, pointer(out)))
    return out


def _plain_matrix(table: Tensor) -> Matrix:
    if table.dim() != 2 or table.dtype not in FLOAT_KINDS:
        raise ValueError(f"a table is [V, H] in float32, float16 or bfloat16, got {list(table.shape)} {table.dtype}")
    return Matrix(pointer(table, table.dtype), *table.shape, Format(FLOAT_KINDS[table.dtype], 0, 0, 0))


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]`: `[T, H]`, `[N]` int64 -> `[N, H]`. A row outside x gives NaN."""
    if x.dim() != 2:
        raise ValueError(f"rows are gathered from [T, H], got {list(x.shape)}")
    out = torch.empty(rows.numel(), x.shape[1])
    count, x_rows = ctypes.c_int64(rows.numel()), ctypes.c_int64(x.shape[0])
    _gather_rows(
        GatherRowsArguments(
            ctypes.pointer(count),
            pointer(rows, torch.int64),
            ctypes.pointer(x_rows),
            pointer(x),
            x.shape[1],
            pointer(out),
        )
    )
    return out

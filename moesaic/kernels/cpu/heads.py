"""What the kernel between projections and attention can do to any rows of heads: normalise and clamp them.

Rows may be some columns of a wider tensor, such as the queries of a merged projection.
"""

import ctypes
import math

import torch
from torch import Tensor

from moesaic.kernels.cpu.attention import _PREPARE, Cache, Prepare, dense_rows
from moesaic.kernels.cpu.calls import pointer


def norm_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of each head: `[T, heads, D]` or `[T, D]` fp32, `[D]` -> the same shape, contiguous."""
    heads = x.shape[1] if x.dim() == 3 else 1
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weights of a norm are {list(weight.shape)}, for {list(x.shape)}")
    return _transform(x, heads, query_norm=pointer(weight), query_norm_heads=1, clip=math.inf, eps=eps)


def clamp(x: Tensor, limit: float) -> Tensor:
    """Bounded to [-limit, limit]: `[T, N]` fp32 -> `[T, N]`, contiguous."""
    return _transform(x, 1, clip=limit)


def _transform(x: Tensor, heads: int, **options: object) -> Tensor:
    address, stride = dense_rows(x)
    out = torch.empty(x.shape)
    rows = ctypes.c_int64(x.shape[0])
    dim = x.shape[-1]
    arguments = Prepare(
        rows=ctypes.addressof(rows),
        query=address,
        query_stride=stride,
        out=out.data_ptr(),
        cache=Cache(kind=0, block_size=16, heads=1, key_dim=dim, value_dim=dim),
        heads=heads,
        **options,
    )
    _PREPARE(arguments)
    return out

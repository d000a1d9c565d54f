"""Latent attention in C++ (csrc/abi/latent.h). Arguments and meaning are those of `kernels.reference_latent`;
activations are fp32."""

import ctypes
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from moesaic.kernels.cpu.attention import Cache, TiledCache
from moesaic.kernels.cpu.calls import Count, Kernel, Matrix, pointer
from moesaic.kernels.cpu.packed import PackedMatrix


class HeadLinear(ctypes.Structure):
    """`moesaic_head_linear_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("matrices", ctypes.POINTER(Matrix)),
        ("heads", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("x_head_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("out_head_stride", ctypes.c_int64),
    )


class PrepareLatent(ctypes.Structure):
    """`moesaic_prepare_latent_args`."""

    _fields_ = (
        ("rows", Count),
        ("query", ctypes.c_void_p),
        ("rotary", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("rotary_stride", ctypes.c_int64),
        ("rotary_head_stride", ctypes.c_int64),
        ("cache", Cache),
        ("heads", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


_head_linear, _prepare_latent = Kernel("head_linear"), Kernel("prepare_latent")


class PackedHeads:
    """A matrix for each head, as kernels find them.

    Raises:
        ValueError: they are not of one shape and format.
    """

    def __init__(self, matrices: Sequence[PackedMatrix]) -> None:
        self.matrices = list(matrices)
        first = self.matrices[0]
        if first.gated or any((m.shape, m.format) != (first.shape, first.format) for m in self.matrices):
            raise ValueError("the heads' matrices must have one shape and one format, and none may be gated")

    @cached_property
    def table(self) -> "ctypes.Array[Matrix]":
        """What C++ takes; good as long as this object lives."""
        return (Matrix * len(self.matrices))(*(m.struct for m in self.matrices))


def head_linear(x: Tensor, weights: PackedHeads, room: int = 0) -> Tensor:
    """Each head's product with its own matrix: `[T, H, K]`, H matrices `[N, K]` -> `[T, H, N + room]`."""
    num_tokens, heads, _ = x.shape
    size, cols = weights.matrices[0].shape
    if heads != len(weights.matrices) or x.shape[2] != cols:
        raise ValueError(f"x is {list(x.shape)}, for {len(weights.matrices)} heads that take {cols} numbers each")
    out = torch.empty(num_tokens, heads, size + room)
    rows = ctypes.c_int64(num_tokens)
    arguments = HeadLinear(
        rows=ctypes.pointer(rows),
        x=_part(x),
        out=out.data_ptr(),
        matrices=weights.table,
        heads=heads,
        x_stride=x.stride(0),
        x_head_stride=x.stride(1),
        out_stride=heads * (size + room),
        out_head_stride=size + room,
    )
    _head_linear(arguments)
    return out


def prepare_latent(
    query: Tensor,
    rotary: Tensor,
    key: Tensor,
    norm: Tensor,
    table: Tensor | None,
    slots: Tensor,
    cache: TiledCache,
    *,
    eps: float,
    interleaved: bool = False,
) -> Tensor:
    """Writes the last R numbers of `query` `[T, heads, L + R]`, and latents into the cache; returns the query."""
    num_tokens, heads, dim = query.shape
    size = norm.shape[0]
    expected = {"rotary": (num_tokens, heads, dim - size), "key": (num_tokens, dim), "slots": (num_tokens,)}
    given = {"rotary": rotary, "key": key, "slots": slots}
    if table is not None:
        expected["table"], given["table"] = (num_tokens, dim - size), table
    for name, tensor in given.items():
        if tensor.shape != expected[name]:
            raise ValueError(f"{name} is {list(tensor.shape)}, expected {list(expected[name])}")
    if not cache.spec.latent or (cache.spec.head_dim, cache.spec.value_size) != (dim, size):
        raise ValueError(f"queries of {dim} numbers, latents of {size}: the cache is for {cache.spec}")
    rows = ctypes.c_int64(num_tokens)
    arguments = PrepareLatent(
        rows=ctypes.pointer(rows),
        query=pointer(query),
        rotary=_part(rotary),
        key=pointer(key),
        norm=pointer(norm),
        table=pointer(table),
        slots=pointer(slots, torch.int64),
        rotary_stride=rotary.stride(0),
        rotary_head_stride=rotary.stride(1),
        cache=cache.c,
        heads=heads,
        interleaved=int(interleaved),
        eps=eps,
    )
    _prepare_latent(arguments)
    return query


def _part(x: Tensor) -> int:
    """The address of some numbers of heads, `[T, heads, n]`. Raises ValueError where a kernel would read others."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or (x.shape[2] > 1 and x.stride(2) != 1):
        raise ValueError(f"heads must be dense float32 on the CPU, got {x.dtype} on {x.device}, strides {x.stride()}")
    return x.data_ptr()

"""The sparse indexer in C++ (csrc/abi/indexer.h). Arguments and meaning are those of `kernels.reference_indexer`;
activations are fp32."""

import ctypes
import math

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.cpu.attention import Attend, Cache, Prepare, TiledCache, plan_attention
from moesaic.kernels.cpu.calls import Kernel, pointer
from moesaic.kernels.reference_indexer import Selection

PREPARE, ATTEND, SELECT = Kernel("prepare_qkv"), Kernel("paged_attention"), Kernel("select_positions")


class Select(ctypes.Structure):
    """`moesaic_select_positions_args`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("query", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("seq_lens", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("table_rows", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("cache", Cache),
        ("heads", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
    )


def prepare_index(
    query: Tensor, key: Tensor, table: Tensor | None, slots: Tensor, cache: TiledCache, interleaved: bool = False
) -> Tensor:
    """Queries `[T, heads, D]` rotated; keys `[T, D]` are in the cache."""
    num_tokens, heads, dim = query.shape
    if key.shape != (num_tokens, dim) or slots.shape != (num_tokens,) or cache.spec.head_dim != dim:
        raise ValueError(
            f"queries {list(query.shape)}, keys {list(key.shape)}, slots {list(slots.shape)}, a cache of "
            f"{cache.spec.head_dim} numbers"
        )
    if table is not None and (table.shape[0] != num_tokens or table.shape[1] > dim):
        raise ValueError(f"a table {list(table.shape)} does not turn {num_tokens} tokens' heads of {dim}")
    out = torch.empty_like(query)
    rows = ctypes.c_int64(num_tokens)
    arguments = Prepare(
        rows=ctypes.addressof(rows),
        query=pointer(query),
        key=pointer(key),
        query_stride=heads * dim,
        key_stride=dim,
        out=out.data_ptr(),
        slots=pointer(slots, torch.int64),
        table=pointer(table),
        cache=cache.c,
        heads=heads,
        query_norm_heads=1,
        key_norm_heads=1,
        rotary=0 if table is None else table.shape[1],
        interleaved=int(interleaved),
        clip=math.inf,
    )
    PREPARE(arguments)
    return out


def select_positions(query: Tensor, weights: Tensor, cache: TiledCache, batch: Batch, top_k: int) -> Selection:
    """The positions that each token scores highest: `[T, heads, D]`, `[T, heads]` -> those of T tokens."""
    num_tokens, heads, dim = query.shape
    if weights.shape != (num_tokens, heads) or num_tokens != batch.num_tokens or (1, dim) != _heads_of(cache):
        raise ValueError(
            f"queries {list(query.shape)}, weights {list(weights.shape)}, a batch of {batch.num_tokens} tokens, "
            f"a cache of {_heads_of(cache)} (heads, numbers)"
        )
    selection = Selection(
        torch.empty(num_tokens, top_k, dtype=torch.int32),
        torch.empty(num_tokens, dtype=torch.int64),
        torch.empty(num_tokens, dtype=torch.int64),
    )
    plan = plan_attention(batch, cache, None)
    rows = ctypes.c_int64(num_tokens)
    arguments = Select(
        rows=ctypes.addressof(rows),
        sequences=ctypes.addressof(plan.num_seqs),
        query=pointer(query),
        weights=pointer(weights),
        positions=selection.positions.data_ptr(),
        counts=selection.counts.data_ptr(),
        tables=selection.tables.data_ptr(),
        query_start=plan.query_start,
        seq_lens=plan.seq_lens,
        block_tables=plan.block_tables,
        table_rows=plan.table_rows,
        table_stride=plan.table_stride,
        cache=cache.c,
        heads=heads,
        top_k=top_k,
    )
    SELECT(arguments)
    return selection


def selected_attention(query: Tensor, cache: TiledCache, batch: Batch, selection: Selection, scale: float) -> Tensor:
    """Attention to selected positions: `[T, heads, D]` -> `[T, heads, Dv]`."""
    num_tokens, heads, dim = query.shape
    if (1, dim) != _heads_of(cache) or len(selection.counts) != num_tokens:
        raise ValueError(
            f"queries {list(query.shape)}, positions of {len(selection.counts)} tokens, a cache of {_heads_of(cache)} "
            "(heads, numbers)"
        )
    out = torch.empty(num_tokens, heads, cache.spec.value_size)
    plan = plan_attention(batch, cache, None)
    rows = ctypes.c_int64(num_tokens)
    arguments = Attend(
        rows=ctypes.addressof(rows),
        sequences=ctypes.addressof(rows),
        query=pointer(query),
        out=out.data_ptr(),
        seq_lens=pointer(selection.counts, torch.int64),
        block_tables=plan.block_tables,
        table_rows=pointer(selection.tables, torch.int64),
        table_stride=plan.table_stride,
        cache=cache.c,
        heads=heads,
        scale=scale,
        selected=pointer(selection.positions, torch.int32),
        selected_stride=selection.positions.shape[1],
    )
    ATTEND(arguments)
    return out


def _heads_of(cache: TiledCache) -> tuple[int, int]:
    return cache.spec.num_kv_heads, cache.spec.head_dim

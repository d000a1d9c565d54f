"""Attention in C++ (csrc/abi/attention.h): the cache in tiles, rotation, preparing queries, keys and values, attending.

Arguments and meaning are those of `kernels.reference_attention`; activations are fp32. Any block size is served, the
multiples of 16 fastest.
"""

import ctypes
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.cpu.arena import allocate
from moesaic.kernels.cpu.calls import Kernel, pointer
from moesaic.kernels.cpu.library import library
from moesaic.kernels.kv_cache import KVCacheSpec
from moesaic.kernels.reference_attention import WindowKind

__all__ = [
    "TiledCache",
    "new_cache",
    "paged_attention",
    "plan_attention",
    "prepare_qkv",
    "query_temperature",
    "refuses",
    "rope_table",
    "rotate",
    "write_kv",
]

KV_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}


class Cache(ctypes.Structure):
    """`moesaic_kv_cache`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("latent", ctypes.c_int32),
    )


class RopeTable(ctypes.Structure):
    """`moesaic_rope_table_args`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("inverse", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("half", ctypes.c_int64),
        ("factor", ctypes.c_float),
    )


class Prepare(ctypes.Structure):
    """`moesaic_prepare_qkv_args`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("cache", Cache),
        ("heads", ctypes.c_int32),
        ("query_norm_heads", ctypes.c_int32),
        ("key_norm_heads", ctypes.c_int32),
        ("rotary", ctypes.c_int32),
        ("rotary_start", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("clip", ctypes.c_float),
        ("norm_last", ctypes.c_int32),
    )


class Attend(ctypes.Structure):
    """`moesaic_paged_attention_args`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("query", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("seq_lens", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("table_rows", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("cache", Cache),
        ("window", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("chunked", ctypes.c_int32),
        ("selected", ctypes.c_void_p),
        ("selected_stride", ctypes.c_int64),
    )


class SparseAttend(Attend):
    """`moesaic_sparse_attention_args`."""

    _fields_ = (("top_k", ctypes.c_int64),)


class Temperature(ctypes.Structure):
    """`moesaic_query_temperature_args`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("period", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("power", ctypes.c_int32),
    )


_ROPE_TABLE, _PREPARE, _ATTEND = Kernel("rope_table"), Kernel("prepare_qkv"), Kernel("paged_attention")
_SPARSE_ATTEND = Kernel("sparse_attention")
_TEMPERATURE = Kernel("query_temperature")


@dataclass(eq=False)
class TiledCache:
    """One layer's keys and values in the tiles of csrc/kernels/kv_layout.h.

    Attributes:
        data: `[blocks, bytes of a block]` uint8.
    """

    spec: KVCacheSpec
    block_size: int
    data: Tensor
    c: Cache = field(init=False)

    def __post_init__(self) -> None:
        s = self.spec
        self.c = Cache(
            self.data.data_ptr(),
            KV_KINDS[s.dtype],
            self.block_size,
            s.num_kv_heads,
            s.head_dim,
            s.value_size,
            int(s.latent) + int(s.by_token),
        )

    def fill_(self, value: float) -> None:
        """Every number in the cache (of int8, every scale) becomes this; for tests."""
        stored = torch.float32 if self.spec.dtype is torch.int8 else self.spec.dtype
        self.data.view(stored).fill_(value)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """What a plan depends on: nothing, here."""
        return ()


def refuses(spec: KVCacheSpec) -> str | None:
    """Why such a cache cannot be served here; None if it can."""
    if spec.dtype not in KV_KINDS:
        return f"a KV cache is float32, float16, bfloat16 or int8, not {spec.dtype}"
    if spec.latent and (spec.num_kv_heads != 1 or spec.value_size % 16 or spec.value_size > spec.head_dim):
        return (
            f"a latent cache has one head whose first numbers, a multiple of 16, are the value; "
            f"here are {spec.num_kv_heads} heads, {spec.value_size} of {spec.head_dim}"
        )
    if spec.by_token and not spec.latent:
        return "only a latent cache is kept by token"
    return None


def new_cache(spec: KVCacheSpec, num_blocks: int, block_size: int) -> TiledCache:
    """An empty cache in huge pages, whose memory is committed as blocks are first written.

    Raises:
        ValueError: such a cache cannot be served.
    """
    reason = refuses(spec)
    if reason is not None:
        raise ValueError(reason)
    size = spec.bytes_per_block(block_size)
    return TiledCache(spec, block_size, allocate(num_blocks * size).view(num_blocks, size))


def block_bytes(spec: KVCacheSpec, block_size: int) -> int:
    """What the kernels take a block to be: `spec.bytes_per_block(block_size)`, or all is wrong."""
    function = library().moesaic_kv_block_bytes
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_void_p,)
    cache = TiledCache(spec, block_size, torch.empty(0, dtype=torch.uint8))
    return int(function(ctypes.addressof(cache.c)))


def rope_table(positions: Tensor, inverse: Tensor, factor: float = 1.0) -> Tensor:
    """Cosines, then sines: `[T]` int64, `[R / 2]` -> `[T, R]`."""
    half = inverse.shape[0]
    out = torch.empty(positions.shape[0], 2 * half)
    rows = ctypes.c_int64(positions.shape[0])
    _ROPE_TABLE(
        RopeTable(
            ctypes.addressof(rows), pointer(positions, torch.int64), pointer(inverse), out.data_ptr(), half, factor
        )
    )
    return out


def query_temperature(positions: Tensor, scale: float, period: int, offset: int = 0, growth: str = "log") -> Tensor:
    """`1 + scale * log(1 + floor((position + offset) / period))`, or `(1 + (position + offset) / period) ** scale` with
    growth "power": `[T]` int64 -> `[T, 1]`."""
    out = torch.empty(positions.shape[0], 1)
    rows = ctypes.c_int64(positions.shape[0])
    _TEMPERATURE(
        Temperature(
            ctypes.addressof(rows),
            pointer(positions, torch.int64),
            out.data_ptr(),
            period,
            offset,
            scale,
            growth == "power",
        )
    )
    return out


def prepare_qkv(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor],
    num_heads: int,
    num_kv_heads: int,
    table: Tensor | None,
    slots: Tensor,
    cache: TiledCache,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    clip: float | None = None,
    interleaved: bool = False,
    norm_last: bool = False,
) -> Tensor:
    """`[T, heads * D + kv_heads * (D + Dv)]` fp32, or three parts of it -> queries `[T, heads, D]`; keys and values are
    in the cache."""
    spec, num_tokens = cache.spec, slots.shape[0]
    sizes = num_heads * spec.head_dim, num_kv_heads * spec.head_dim, num_kv_heads * spec.value_size
    parts = [qkv] if isinstance(qkv, Tensor) else qkv
    columns = [part.shape[1] for part in parts]
    expected = [sum(sizes)] if isinstance(qkv, Tensor) else list(sizes)
    if columns != expected or num_kv_heads != spec.num_kv_heads or any(p.shape[0] != num_tokens for p in parts):
        wanted = " + ".join(map(str, expected))
        raise ValueError(
            f"qkv is {[list(part.shape) for part in parts]}, with {num_kv_heads} KV heads, and slots "
            f"{list(slots.shape)}; the cache has {spec.num_kv_heads} heads, for which {wanted} columns are expected"
        )
    out = torch.empty(num_tokens, num_heads, spec.head_dim)
    if isinstance(qkv, Tensor):
        address, width = pointer(qkv) or 0, sum(sizes)
        places = [(address, width), (address + 4 * sizes[0], width), (address + 4 * (sizes[0] + sizes[1]), width)]
    else:
        places = [dense_rows(part) for part in qkv]
    (query, query_stride), (key, key_stride), (value, value_stride) = places
    rows = ctypes.c_int64(num_tokens)
    arguments = Prepare(
        rows=ctypes.addressof(rows),
        query=query,
        key=key,
        value=value,
        query_stride=query_stride,
        key_stride=key_stride,
        value_stride=value_stride,
        out=out.data_ptr(),
        slots=pointer(slots, torch.int64),
        query_norm=pointer(q_norm),
        key_norm=pointer(k_norm),
        table=pointer(table),
        cache=cache.c,
        heads=num_heads,
        query_norm_heads=_heads_normed(q_norm, spec.head_dim, num_heads),
        key_norm_heads=_heads_normed(k_norm, spec.head_dim, num_kv_heads),
        rotary=_rotary(table, spec.head_dim, num_tokens),
        interleaved=int(interleaved),
        eps=eps,
        clip=math.inf if clip is None else clip,
        norm_last=int(norm_last),
    )
    _PREPARE(arguments)
    return out


def dense_rows(x: Tensor) -> tuple[int, int]:
    """Address of fp32 rows and how far they are apart: `[T, ...]`, perhaps some columns of a wider tensor.

    Raises:
        ValueError: a row is not contiguous, or x is no fp32 tensor on the CPU.
    """
    if x.dtype is not torch.float32 or x.device.type != "cpu" or (x.numel() and not x[:1].is_contiguous()):
        raise ValueError(
            f"a kernel needs dense float32 rows on the CPU, got {x.dtype} on {x.device}, shape {list(x.shape)}, "
            f"strides {list(x.stride())}"
        )
    return x.data_ptr(), x.stride(0)


def _heads_normed(weight: Tensor | None, dim: int, heads: int) -> int:
    """Over how many heads a norm runs: one, or all."""
    if weight is None or weight.shape == (dim,):
        return 1
    if weight.shape != (heads * dim,):
        raise ValueError(f"weights of a norm are {list(weight.shape)}, for {heads} heads of {dim}")
    return heads


def _rotary(table: Tensor | None, dim: int, num_tokens: int, start: int = 0) -> int:
    """How many numbers of a head rotate."""
    if table is None:
        return 0
    if table.shape[0] != num_tokens or start + table.shape[1] > dim:
        raise ValueError(f"a table {list(table.shape)} does not turn {num_tokens} tokens' heads of {dim} from {start}")
    return int(table.shape[1])


def write_kv(cache: TiledCache, key: Tensor, value: Tensor | None, slots: Tensor) -> None:
    """Store keys and values `[T, kv_heads, D]` fp32 at `slots`; no value in a latent cache."""
    spec, num_tokens = cache.spec, slots.shape[0]
    expected = (num_tokens, spec.num_kv_heads, spec.head_dim)
    if key.shape != expected or (value is None) != spec.latent:
        raise ValueError(f"keys are {list(key.shape)}, expected {list(expected)}; values go with all but latent caches")
    if value is not None and value.shape != (*expected[:2], spec.value_size):
        raise ValueError(f"values are {list(value.shape)}, expected {[*expected[:2], spec.value_size]}")
    rows = ctypes.c_int64(num_tokens)
    arguments = Prepare(
        rows=ctypes.addressof(rows),
        key=pointer(key),
        value=pointer(value),
        key_stride=spec.num_kv_heads * spec.head_dim,
        value_stride=spec.num_kv_heads * spec.value_size,
        slots=pointer(slots, torch.int64),
        cache=cache.c,
        clip=math.inf,
    )
    _PREPARE(arguments)


def rotate(x: Tensor, table: Tensor, start: int = 0, interleaved: bool = False) -> Tensor:
    """Turn pairs of each head: `[T, heads, D]` fp32, `[T, R]` -> `[T, heads, D]`."""
    num_tokens, heads, dim = x.shape
    out = torch.empty(num_tokens, heads, dim)
    address, stride = dense_rows(x)
    rows = ctypes.c_int64(num_tokens)
    arguments = Prepare(
        rows=ctypes.addressof(rows),
        query=address,
        query_stride=stride,
        out=out.data_ptr(),
        table=pointer(table),
        cache=Cache(kind=0, block_size=16, heads=1, key_dim=dim, value_dim=dim),
        heads=heads,
        rotary=_rotary(table, dim, num_tokens, start),
        rotary_start=start,
        interleaved=int(interleaved),
        clip=math.inf,
    )
    _PREPARE(arguments)
    return out


@dataclass(eq=False)
class AttentionPlan:
    """The batch as the kernel reads it, its pointers checked once a step; and the layers' window."""

    batch: Batch
    window: int | None
    kind: WindowKind
    num_seqs: ctypes.c_int64
    num_tokens: int
    query_start: int | None
    seq_lens: int | None
    block_tables: int
    table_stride: int
    table_rows: int | None


def plan_attention(batch: Batch, cache: TiledCache, window: int | None, kind: WindowKind = "sliding") -> AttentionPlan:
    """What all layers with this window share in a step."""
    tables = batch.block_tables
    if tables.dtype is not torch.int64 or tables.stride(1) != 1:
        raise ValueError(f"block tables are {tables.dtype} with strides {tables.stride()}; rows must be int64, dense")
    return AttentionPlan(
        batch,
        window,
        kind,
        ctypes.c_int64(batch.seq_lens.shape[0]),
        batch.num_tokens,
        pointer(batch.query_start, torch.int64),
        pointer(batch.seq_lens, torch.int64),
        tables.data_ptr(),
        tables.stride(0),
        pointer(batch.table_rows, torch.int64),
    )


def paged_attention(
    query: Tensor,
    cache: TiledCache,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Causal attention to the cached tokens, or to each query's best: `[T, heads, D]` fp32 -> `[T, heads, Dv]`."""
    num_tokens, heads, dim = query.shape
    spec = cache.spec
    if num_tokens != plan.num_tokens or dim != spec.head_dim or heads % spec.num_kv_heads:
        raise ValueError(
            f"queries are {list(query.shape)}; the batch has {plan.num_tokens} tokens, the cache "
            f"{spec.num_kv_heads} heads of {spec.head_dim}"
        )
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks are {list(sinks.shape)}, for {heads} heads")
    if top_k is not None and (top_k < 1 or spec.latent):
        raise ValueError(f"attention to the best {top_k} keys of a {'latent' if spec.latent else 'plain'} cache")
    out = torch.empty(num_tokens, heads, spec.value_size)
    rows = ctypes.c_int64(num_tokens)
    arguments = (
        ctypes.addressof(rows),
        ctypes.addressof(plan.num_seqs),
        pointer(query),
        out.data_ptr(),
        plan.query_start,
        plan.seq_lens,
        plan.block_tables,
        plan.table_rows,
        pointer(sinks),
        plan.table_stride,
        cache.c,
        plan.window or 0,
        heads,
        scale,
        softcap or 0.0,
        plan.kind == "chunked",
    )
    if top_k is None:
        _ATTEND(Attend(*arguments))
    else:
        _SPARSE_ATTEND(SparseAttend(*arguments, top_k=top_k))
    return out

"""Latent attention's kernels in decode steps, part of `moesaic bench attention`: beside the longer of what memory takes
for the bytes and fp32 products for the operations, measured in turns.

Shapes are DeepSeek-V2-Lite's and V3.2's: latents of 512, 64 numbers that rotate; an indexer of 64 heads of 128, which
chooses 2,048 positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.entrypoints.bench.report import Figure
from moesaic.kernels.cpu.attention import TiledCache, paged_attention, plan_attention, write_kv
from moesaic.kernels.cpu.indexer import select_positions, selected_attention
from moesaic.kernels.cpu.limits import Stream, gemm_peak
from moesaic.kernels.kv_cache import KVCacheSpec

LATENT, ROTARY, INDEX_HEADS, INDEX_DIM, TOP_K, BLOCK = 512, 64, 64, 128, 2048, 16
DTYPE = torch.bfloat16
CONTEXTS = (4096, 16384)
MANY_HEADS, FEW_HEADS = 128, 16
LEAST_BYTES = 64 << 20  # caches that are read in turn, so that none stays in the processor's


@dataclass
class Call:
    """A kernel at work: how to run it once, and the bytes and operations that it cannot do without."""

    run: Callable[[], object]
    nbytes: float
    operations: float


@dataclass
class Sequence:
    """One sequence's cache, filled, and a batch of its last token."""

    cache: TiledCache
    batch: Batch

    @classmethod
    def of(cls, spec: KVCacheSpec, context: int) -> "Sequence":
        blocks = -(-context // BLOCK)
        cache = spec.allocate(blocks, BLOCK, "cpu")
        assert isinstance(cache, TiledCache)
        table = torch.randperm(blocks)[None]
        slots = (table[0, :, None] * BLOCK + torch.arange(BLOCK)).flatten()[:context]
        write_kv(cache, torch.randn(context, 1, spec.head_dim), None, slots)
        return cls(cache, _batch(table, context))


def _batch(table: Tensor, context: int) -> Batch:
    one = torch.zeros(1, dtype=torch.int64)
    return Batch(
        token_ids=one,
        positions=one,
        slots=one,
        query_start=torch.arange(2),
        seq_lens=torch.tensor([context]),
        block_tables=table,
        table_rows=one,
        logits_rows=one,
        query_lens_host=[1],
        seq_lens_host=[context],
        table_rows_host=[0],
        seq_ids=[0],
    )


def dense(heads: int, context: int) -> Call:
    """Attention to all latents."""
    spec = KVCacheSpec(1, LATENT + ROTARY, DTYPE, value_dim=LATENT, latent=True, tiled=True)
    at, query = Sequence.of(spec, context), torch.randn(1, heads, LATENT + ROTARY)
    plan = plan_attention(at.batch, at.cache, None)
    return Call(
        lambda: paged_attention(query, at.cache, plan, 0.1), spec.bytes_per_token * context, _products(heads, context)
    )


def selected(heads: int, context: int) -> Call:
    """Attention to the latents at chosen positions."""
    spec = KVCacheSpec(1, LATENT + ROTARY, DTYPE, value_dim=LATENT, latent=True, by_token=True, tiled=True)
    at, query = Sequence.of(spec, context), torch.randn(1, heads, LATENT + ROTARY)
    choice = _indexed(context)()
    count = min(TOP_K, context)
    return Call(
        lambda: selected_attention(query, at.cache, at.batch, choice, 0.1),
        spec.bytes_per_token * count,
        _products(heads, count),
    )


def indexed(heads: int, context: int) -> Call:
    """The choice of positions."""
    return Call(_indexed(context), 2.0 * INDEX_DIM * context, 2.0 * heads * INDEX_DIM * context)


def _indexed(context: int) -> Callable[[], object]:
    at = Sequence.of(KVCacheSpec(1, INDEX_DIM, DTYPE, value_dim=0, latent=True, tiled=True), context)
    query, weights = torch.randn(1, INDEX_HEADS, INDEX_DIM), torch.randn(1, INDEX_HEADS)
    return lambda: select_positions(query, weights, at.cache, at.batch, TOP_K)


def _products(heads: int, positions: int) -> float:
    """Operations of scores and of mixing latents."""
    return 2.0 * heads * (2 * LATENT + ROTARY) * positions


CASES: dict[str, tuple[Callable[[int, int], Call], int]] = {
    f"latent heads={FEW_HEADS}": (dense, FEW_HEADS),
    f"latent heads={MANY_HEADS}": (dense, MANY_HEADS),
    f"indexer heads={INDEX_HEADS}": (indexed, INDEX_HEADS),
    f"chosen latents heads={FEW_HEADS}": (selected, FEW_HEADS),
    f"chosen latents heads={MANY_HEADS}": (selected, MANY_HEADS),
}


def figures(threads: int, runs: int, stream: Stream) -> list[Figure]:
    """All cases with these many threads; torch has been told."""
    out: list[Figure] = []
    for name, (make, heads) in CASES.items():
        for context in CONTEXTS:
            case = f"decode {name} bf16 threads={threads} batch=1 context={context}"
            out += _figures(case, make, heads, context, runs, stream)
    return out


def _figures(
    case: str, make: Callable[[int, int], Call], heads: int, context: int, runs: int, stream: Stream
) -> list[Figure]:
    calls = [make(heads, context)]
    calls += [make(heads, context) for _ in range(int(LEAST_BYTES // calls[0].nbytes))]
    for call in calls:
        call.run()
    times, floors = [], []
    for _ in range(runs):
        rates = stream.read(), gemm_peak("fp32")
        times.append(fmean(_seconds(call.run) for call in calls))
        rates = (rates[0] + stream.read()) / 2, max(rates[1], gemm_peak("fp32"))
        floors.append(max(calls[0].nbytes / rates[0], calls[0].operations / rates[1]))
    shares = [floor / time for floor, time in zip(floors, times, strict=True)]
    milliseconds = [[1e3 * second for second in seconds] for seconds in (times, floors)]
    return [
        Figure(
            bench="attention", case=case, metric="call", unit="ms", samples=milliseconds[0], baselines=milliseconds[1]
        ),
        Figure(bench="attention", case=case, metric="share", unit="of the limit", samples=shares),
    ]


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start

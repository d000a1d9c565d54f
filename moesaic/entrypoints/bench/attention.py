"""moesaic bench attention: decode beside the memory's bandwidth, prefill beside the peak of fp32 products, measured in
turns. Shape: 16 query heads, 4 KV heads of 128. Then latent attention and its indexer (`latent`)."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.entrypoints.bench import latent
from moesaic.entrypoints.bench.report import Figure
from moesaic.kernels.cpu.attention import paged_attention, plan_attention, write_kv
from moesaic.kernels.cpu.limits import GIGA, Stream, gemm_peak
from moesaic.kernels.kv_cache import KVCacheSpec

HEADS, KV_HEADS, DIM, BLOCK = 16, 4, 128, 16
CONTEXT = 2048
LEAST_BYTES = 160 << 20  # caches that are read in turn, so that none stays in the processor's
KINDS = {"bf16": torch.bfloat16, "int8": torch.int8}
BATCHES = (1, 16)
PROMPTS = (1024, 4096)


@dataclass
class Work:
    """One layer's attention for sequences of `context` tokens, the last `queries` of which are computed."""

    dtype: torch.dtype
    batch: int
    context: int
    queries: int

    def __post_init__(self) -> None:
        spec = KVCacheSpec(KV_HEADS, DIM, self.dtype, tiled=True)
        blocks = -(-self.context // BLOCK)
        self.cache = spec.allocate(self.batch * blocks, BLOCK, "cpu")
        self.bytes = self.batch * blocks * spec.bytes_per_block(BLOCK)
        tables = torch.randperm(self.batch * blocks).view(self.batch, blocks)
        slots = (tables[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)[:, : self.context].flatten()
        key, value = (torch.randn(slots.shape[0], KV_HEADS, DIM) for _ in range(2))
        write_kv(self.cache, key, value, slots)
        self.query = torch.randn(self.batch * self.queries, HEADS, DIM)
        self.plan = plan_attention(self._batch(tables), self.cache, None)

    def _batch(self, tables: Tensor) -> Batch:
        none = torch.zeros(self.batch * self.queries, dtype=torch.int64)
        return Batch(
            token_ids=none,
            positions=none,
            slots=none,
            query_start=torch.arange(self.batch + 1) * self.queries,
            seq_lens=torch.full((self.batch,), self.context),
            block_tables=tables,
            table_rows=torch.arange(self.batch),
            logits_rows=none,
            query_lens_host=[self.queries] * self.batch,
            seq_lens_host=[self.context] * self.batch,
            table_rows_host=list(range(self.batch)),
            seq_ids=list(range(self.batch)),
        )

    def run(self) -> None:
        """Compute it once."""
        paged_attention(self.query, self.cache, self.plan, DIM**-0.5)

    @property
    def operations(self) -> float:
        """Additions and multiplications of the scores and of mixing the values."""
        before = self.context - self.queries
        pairs = self.queries * before + self.queries * (self.queries + 1) / 2
        return 4 * self.batch * HEADS * DIM * pairs


def figures(threads: int, runs: int) -> list[Figure]:
    """Decode and prefill with these many threads; torch has been told."""
    out: list[Figure] = []
    stream = Stream()
    for kind, dtype in KINDS.items():
        for batch in BATCHES:
            case = f"decode {kind} threads={threads} batch={batch} context={CONTEXT}"
            out += _decode(case, dtype, batch, stream, runs)
    for prompt in PROMPTS:
        work = Work(torch.bfloat16, 1, prompt, prompt)
        work.run()
        rates, peaks = [], []
        for _ in range(runs):
            peaks.append(gemm_peak("fp32") / GIGA)
            rates.append(work.operations / _seconds(work.run) / GIGA)
        case = f"prefill bf16 threads={threads} batch=1 prompt={prompt}"
        out += _figures(case, "rate", "GFLOP/s", rates, peaks)
    return out + latent.figures(threads, runs, stream)


def _decode(case: str, dtype: torch.dtype, batch: int, stream: Stream, runs: int) -> list[Figure]:
    """Bytes a second of a step's attention, over as many caches as are larger than the processor's."""
    works = [Work(dtype, batch, CONTEXT, 1)]
    works += [Work(dtype, batch, CONTEXT, 1) for _ in range(LEAST_BYTES // works[0].bytes)]
    for work in works:
        work.run()
    rates, streams = [], []
    for _ in range(runs):
        before = stream.read()
        rates.append(fmean(work.bytes / _seconds(work.run) for work in works) / GIGA)
        streams.append((before + stream.read()) / 2 / GIGA)
    return _figures(case, "bandwidth", "GB/s", rates, streams)


def _figures(case: str, metric: str, unit: str, samples: list[float], limits: list[float]) -> list[Figure]:
    shares = [ours / limit for ours, limit in zip(samples, limits, strict=True)]
    return [
        Figure(bench="attention", case=case, metric=metric, unit=unit, samples=samples, baselines=limits),
        Figure(bench="attention", case=case, metric="share", unit="of the limit", samples=shares),
    ]


def _seconds(run: Callable[[], None]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start

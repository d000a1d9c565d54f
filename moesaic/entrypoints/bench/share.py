"""How near a run comes to the machine's limits: what its steps computed, and the floor under it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from time import perf_counter
from typing import Any

import torch

from moesaic.core.errors import UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.core.step import StepPlan, StepResult
from moesaic.engine.llm_engine import LLMEngine
from moesaic.entrypoints.bench.report import Figure
from moesaic.experts.store import ExpertPages
from moesaic.kernels.cpu.limits import GIGA, Stream, gemm_kind, gemm_peak
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.layers.kv_cache import KVCacheSpec
from moesaic.models.floor import Formats, Work, floor_seconds, kept_numbers
from moesaic.models.spec import ModelSpec

DTYPE_KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
QUANTISED = {"w8": "w8a16", "w4": "w4a16", "w8a8": "w8a8"}  # kinds of weights, as --quantization calls them
PLACES = ("experts", "dense", "lm_head", "router")  # modules of these names and what is in them; "dense": all others
READ_EVERY = 0.25  # seconds between two reads of the bandwidth within a run


def formats_of(engine: LLMEngine) -> Formats:
    """What the engine keeps weights and KV in; of weights that are kept in several ways, the first one's.

    Raises:
        UnsupportedError: the model is no spec's, so that nobody says what its steps must read and multiply.
    """
    model = engine.engine.executor.model
    if not isinstance(model.spec, ModelSpec):
        raise UnsupportedError(
            f"{engine.engine.info.architecture} has no spec to compute a floor from; `moesaic bench serve` measures it"
        )
    found = {place: WeightFormat(DTYPE_KINDS[engine.engine.info.dtype]) for place in PLACES}
    seen: set[str] = set()
    for name, module in model.named_modules():
        parts = name.split(".")
        place = next((part for part in reversed(parts) if part in PLACES), "dense")
        held = module.pages.gate_up if isinstance(module, ExpertPages) else getattr(module, "weight", None)
        matrix = held[0] if isinstance(held, list) else held
        if isinstance(matrix, PackedMatrix) and place not in seen and parts[-1] not in ("embed", "positions"):
            seen.add(place)
            found[place] = matrix.format
    block_size = engine.engine.info.block_size
    per_number = [  # of each layer that keeps something of every token
        sum(c.bytes_per_block(block_size) for c in layer.cache_specs if isinstance(c, KVCacheSpec)) / block_size / kept
        for spec, layer in zip(model.spec.layers, model.layers, strict=True)
        if (kept := kept_numbers(spec.attention))
    ]
    return Formats(
        experts=found["experts"],
        dense=found["dense"],
        head=found["lm_head"],
        router=found["router"],
        kv_bytes=next(iter(per_number), 0.0),
        state_bytes=engine.engine.executor.kv.bytes_per_slot,
    )


class Watch:
    """Sees what each step of an engine computes, while `watching` is entered."""

    def __init__(self, engine: LLMEngine, count_each: bool) -> None:
        self.works: list[Work] = []
        self._executor: Any = engine.engine.executor
        self._plain: Callable[[StepPlan], StepResult] = self._executor.execute
        self._plan: StepPlan | None = None
        self._count_each = count_each
        self._stats = getattr(getattr(self._executor, "model", None), "expert_stats", None)
        self._before = self._counts()

    def execute(self, plan: StepPlan) -> StepResult:
        """The executor's `execute`, which notes the plan."""
        result = self._plain(plan)
        if plan.advance:  # one without tells the worker who left
            self._plan = plan
        if self._count_each:
            self.close_step()
        return result

    def close_step(self) -> Work | None:
        """Count what the last step did; called between steps, where it takes no time from them."""
        plan, self._plan = self._plan, None
        if plan is None:
            return None
        distinct = None
        if self._before is not None:
            now = self._counts()
            assert now is not None
            distinct = (now != self._before).sum(1).tolist()
            self._before = now
        chunks = [(item.start, item.num_tokens) for item in plan.advance]
        self.works.append(Work(chunks=chunks, rows=sum(item.samples for item in plan.advance), distinct=distinct))
        return self.works[-1]

    def _counts(self) -> torch.Tensor | None:
        return None if self._stats is None else self._stats.counts[: self._stats.num_layers].clone()


@contextmanager
def watching(engine: LLMEngine, count_each: bool = False) -> Iterator[Watch]:
    """Watch an engine's steps.

    Args:
        count_each: count within each step; else whoever drives the engine calls `close_step` after each.
    """
    watch = Watch(engine, count_each)
    executor: Any = engine.engine.executor
    executor.execute = watch.execute
    try:
        yield watch
    finally:
        del executor.execute


class Meter:
    """The machine's limits as they were beside one run after another.

    Attributes:
        stream: bytes a second, one entry a run: the mean of what was read before, in and after it.
        peak: operations a second, one entry a run.
    """

    def __init__(self, engine: LLMEngine, reader: Stream | None = None) -> None:
        self.spec = engine.engine.executor.model.spec
        self.formats = formats_of(engine)
        self.kind = gemm_kind(self.formats.experts.kind)
        self.stream: list[float] = []
        self.peak: list[float] = []
        self._reader = reader or Stream()
        self._reads: list[float] = []
        self._last = 0.0
        gemm_peak(self.kind)  # the first call prepares it

    def begin(self) -> None:
        """Right before a run."""
        self._peak = gemm_peak(self.kind)
        self._reads = [self._reader.read()]
        self._last = perf_counter()

    def between(self) -> float:
        """Between two steps of a run: read again, if it is time; the seconds that this took."""
        now = perf_counter()
        if now - self._last < READ_EVERY:
            return 0.0
        self._reads.append(self._reader.read())
        self._last = perf_counter()
        return self._last - now

    def end(self) -> None:
        """Right after a run."""
        self._reads.append(self._reader.read())
        self.stream.append(fmean(self._reads))
        self.peak.append(max(self._peak, gemm_peak(self.kind)))

    def floor(self, works: Sequence[Work]) -> float:
        """Seconds under which the run that ended last could not have done this."""
        return sum(floor_seconds(self.spec, self.formats, work, self.stream[-1], self.peak[-1]) for work in works)

    def figures(self, bench: str, case: str) -> list[Figure]:
        """The limits themselves."""
        return [
            Figure(bench=bench, case=case, metric="stream", unit="GB/s", samples=[rate / GIGA for rate in self.stream]),
            Figure(
                bench=bench,
                case=case,
                metric=f"gemm_{self.kind}",
                unit="GFLOP/s" if self.kind != "u8s8" else "GOP/s",
                samples=[rate / GIGA for rate in self.peak],
            ),
        ]

"""Benchmarks of an engine in this process: latency of one batch, throughput of many prompts, overhead of a step.

Prompts are token ids drawn at random, new ones each run, so that the prefix cache finds nothing; every sequence
runs to its full length. Nothing here depends on what the model says.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import Structure
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter
from typing import ClassVar

from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.llm import LLM
from moesaic.engine.llm_engine import LLMEngine
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.share import QUANTISED, Meter, formats_of, watching
from moesaic.entrypoints.bench.workload import model_case, random_prompts, spread_lengths
from moesaic.kernels.cpu.calls import Kernel
from moesaic.kernels.cpu.limits import Stream
from moesaic.models.floor import Work

MS = 1e3
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "top_k": 50}
WARMUP_STEPS = 16  # decode steps of `overhead` that are not counted


@dataclass(frozen=True)
class Step:
    """The times of one step, in seconds.

    Attributes:
        whole: LLMEngine.step, with detokenisation.
        engine: Engine.step, by the engine's own clock.
        forward: the model's part of it, by the worker's.
        kernels: calls of the C++ backend in it, if `timing_kernels` is entered.
        first: a request of the batch still waited for its first token when the step began.
        steady: every sequence of the batch decoded one token in it, and none began or ended.
    """

    whole: float
    engine: float
    forward: float
    kernels: float
    first: bool
    steady: bool


@dataclass
class BatchRun:
    """One batch of requests from its arrival to its last token; times in seconds.

    Attributes:
        first_token: one entry a request, in order, from the batch's arrival.
        token_ids: what each request was answered.
    """

    seconds: float = 0.0
    first_token: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def run_batch(
    engine: LLMEngine,
    prompts: Sequence[list[int]],
    params: SamplingParams | Sequence[SamplingParams],
    after_step: Callable[[Step], float] | None = None,
) -> BatchRun:
    """Serve prompts as one batch, and time every step.

    Args:
        params: one for all, or one a prompt.
        after_step: called after each; what it takes is not counted, by the seconds that it returns.

    Raises:
        MoesaicError: a request failed, so that the times mean nothing.
    """
    run = BatchRun()
    first_token: dict[str, float] = {}
    answers: dict[str, list[int]] = {}
    start = perf_counter()
    ids = [f"bench-{i}" for i in range(len(prompts))]
    many = [params] * len(ids) if isinstance(params, SamplingParams) else params
    for request_id, prompt, own in zip(ids, prompts, many, strict=True):
        engine.add_request(request_id, prompt, own)
    while engine.has_unfinished_requests():
        all_began = len(first_token) == len(ids)
        clocks = _clocks(engine)
        before = perf_counter()
        outputs = engine.step()
        now = perf_counter()
        after = _clocks(engine)
        _check(outputs)
        for output in outputs:
            first_token.setdefault(output.request_id, now - start)
            answers[output.request_id] = output.outputs[0].token_ids
        decoded = all_began and after.tokens - clocks.tokens == len(ids)
        steady = decoded and len(outputs) == len(ids) and not any(output.finished for output in outputs)
        run.steps.append(
            Step(
                whole=now - before,
                engine=after.engine - clocks.engine,
                forward=after.forward - clocks.forward,
                kernels=after.kernels - clocks.kernels,
                first=not all_began,
                steady=steady,
            )
        )
        if after_step is not None:
            start += after_step(run.steps[-1])
    run.seconds = perf_counter() - start
    run.first_token = [first_token[request_id] for request_id in ids]
    run.token_ids = [answers[request_id] for request_id in ids]
    return run


@dataclass(frozen=True)
class _Clocks:
    """The engine's totals: seconds in steps, in the model and in kernels; tokens computed."""

    engine: float
    forward: float
    kernels: float
    tokens: int


def _clocks(engine: LLMEngine) -> _Clocks:
    stats = engine.engine.stats
    return _Clocks(
        stats.step_seconds_total, stats.forward_seconds_total, KernelClock.seconds, stats.computed_tokens_total
    )


class KernelClock:
    """Seconds in calls of the C++ backend, while `timing_kernels` is entered; a replayed step is one call."""

    seconds: ClassVar[float] = 0.0


@contextmanager
def timing_kernels() -> Iterator[None]:
    """Time every call of a kernel, at about 0.3 µs each."""
    plain = Kernel.__call__

    def timed(kernel: Kernel, arguments: Structure) -> None:
        start = perf_counter()
        plain(kernel, arguments)
        KernelClock.seconds += perf_counter() - start

    Kernel.__call__ = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Kernel.__call__ = plain  # type: ignore[method-assign]


def _check(outputs: Iterable[RequestOutput]) -> None:
    for output in outputs:
        if output.error is not None:
            raise MoesaicError(f"a request failed, nothing was measured: {output.error}")


def case_of(engine: LLMEngine) -> str:
    """The model's part of a case: its name, and what its weights are kept in."""
    info = engine.engine.info
    kind = formats_of(engine).experts.kind
    return model_case(info.names[0], QUANTISED.get(kind, info.dtype))


@dataclass(frozen=True)
class Shape:
    """A batch of equal requests."""

    batch_size: int
    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"batch={self.batch_size} in={self.input_len} out={self.output_len}"


def latency(engine: LLMEngine, shapes: Sequence[Shape], *, runs: int, warmup: int, seed: int) -> list[Figure]:
    """Batches of equal requests, greedy, each `runs` times after `warmup` uncounted ones."""
    for shape in shapes:
        check_batch_size(engine, shape.batch_size)
    reader = Stream()
    return [
        figure
        for shape in shapes
        for figure in _latency(engine, shape, Meter(engine, reader), runs=runs, warmup=warmup, seed=seed)
    ]


def _latency(engine: LLMEngine, shape: Shape, meter: Meter, *, runs: int, warmup: int, seed: int) -> list[Figure]:
    """One shape, each run beside the machine's limits.

    The baselines of `time_to_first_token` and `decode_step` are their floors; `prefill_share` and `decode_share` are
    floor over time.
    """
    batch_size, output_len = shape.batch_size, shape.output_len
    params = SamplingParams(max_tokens=output_len, ignore_eos=True, **GREEDY)
    counted = []
    for i in range(warmup + runs):
        prompts = random_prompts([shape.input_len] * batch_size, engine.engine.info.vocab_size, seed + i)
        if i < warmup:
            run_batch(engine, prompts, params)
        else:
            counted.append(measured(engine, prompts, params, meter)[1])
    decode = [run for run in counted if run.decode_steps]
    # metric, unit, samples, floors
    table = [
        ("run", "s", [run.seconds for run in counted], None),
        (
            "time_to_first_token",
            "ms",
            [run.first_token * MS for run in counted],
            [run.prefill_floor * MS for run in counted],
        ),
        ("decode_step", "ms", [run.decode_step * MS for run in decode], [run.decode_floor * MS for run in decode]),
        ("generated_tokens", "tokens/s", [batch_size * output_len / run.seconds for run in counted], None),
        ("prefill_share", "share", [run.prefill_share for run in counted], None),
        ("decode_share", "share", [run.decode_share for run in decode], None),
    ]
    case = f"{case_of(engine)} {shape}"
    return [
        Figure(bench="latency", case=case, metric=metric, unit=unit, samples=samples, baselines=floors)
        for metric, unit, samples, floors in table
        if samples  # a batch whose prompts outlast its outputs has no step that only decodes
    ] + meter.figures("latency", case)


@dataclass(frozen=True)
class Measured:
    """One batch beside the machine's limits; times in seconds.

    Attributes:
        first_token: median of the requests, from the batch's arrival.
        prefill_seconds, prefill_floor: of all steps until every request had its first token.
        decode_step, decode_floor: means over the steps in which every request decodes.
    """

    seconds: float
    first_token: float
    prefill_seconds: float
    prefill_floor: float
    decode_steps: int
    decode_step: float
    decode_floor: float

    @property
    def prefill_share(self) -> float:
        return self.prefill_floor / self.prefill_seconds

    @property
    def decode_share(self) -> float:
        return self.decode_floor / self.decode_step if self.decode_steps else 0.0


def measured(
    engine: LLMEngine, prompts: Sequence[list[int]], params: SamplingParams, meter: Meter
) -> tuple[BatchRun, Measured]:
    """Serve prompts as one batch, and read the machine's limits before it, between its steps and after it."""
    first: list[Work] = []
    steady: list[Work] = []

    def after_step(step: Step) -> float:
        before = perf_counter()
        work = watch.close_step()
        if work is not None and step.first:
            first.append(work)
        if work is not None and step.steady:
            steady.append(work)
        meter.between()
        return perf_counter() - before

    meter.begin()
    with watching(engine) as watch:
        run = run_batch(engine, prompts, params, after_step)
    meter.end()
    times = [step.whole for step in run.steps if step.steady]
    return run, Measured(
        seconds=run.seconds,
        first_token=median(run.first_token),
        prefill_seconds=sum(step.whole for step in run.steps if step.first),
        prefill_floor=meter.floor(first),
        decode_steps=len(times),
        decode_step=mean(times) if times else 0.0,
        decode_floor=meter.floor(steady) / len(steady) if steady else 0.0,
    )


def throughput(
    llm: LLM, *, num_prompts: int, input_len: int, output_len: int, spread: float, runs: int, warmup: int, seed: int
) -> list[Figure]:
    """Many prompts at once through `LLM.generate`, greedy.

    Args:
        input_len, output_len: means; each request's lengths lie within `spread` of them (0.5: half to one and a
            half times). The lengths are the same in every run, the token ids are not.
    """
    info = llm.llm_engine.engine.info
    inputs = spread_lengths(num_prompts, input_len, spread, seed)
    outputs = spread_lengths(num_prompts, output_len, spread, seed + 1)
    params = [SamplingParams(max_tokens=length, ignore_eos=True, **GREEDY) for length in outputs]
    seconds, floors = [], []
    meter = Meter(llm.llm_engine)
    for i in range(warmup + runs):
        prompts = random_prompts(inputs, info.vocab_size, seed + i)
        if i < warmup:
            _check(llm.generate(prompts, params, use_tqdm=False))
            continue
        meter.begin()
        with watching(llm.llm_engine, count_each=True) as watch:
            start = perf_counter()
            results = llm.generate(prompts, params, use_tqdm=False)
            seconds.append(perf_counter() - start)
        meter.end()
        _check(results)
        floors.append(meter.floor(watch.works))
    amounts = {
        ("requests", "requests/s"): num_prompts,
        ("prompt_tokens", "tokens/s"): sum(inputs),
        ("generated_tokens", "tokens/s"): sum(outputs),
        ("total_tokens", "tokens/s"): sum(inputs) + sum(outputs),
    }
    case = f"{case_of(llm.llm_engine)} prompts={num_prompts} in~{input_len} out~{output_len}"
    figures = [
        Figure(bench="throughput", case=case, metric=metric, unit=unit, samples=[amount / s for s in seconds])
        for (metric, unit), amount in amounts.items()
    ]
    shares = [floor / took for floor, took in zip(floors, seconds, strict=True)]
    figures.append(Figure(bench="throughput", case=case, metric="share", unit="share", samples=shares))
    return figures + meter.figures("throughput", case)


def overhead(engine: LLMEngine, *, batch_sizes: Sequence[int], input_len: int, steps: int, seed: int) -> list[Figure]:
    """What a step costs beside the model, while every sequence of a batch decodes; greedy, then sampled.

    `engine` is Engine.step less the model (planning, batch tensors, sampling, booking), both by the engine's own
    clock; `engine+frontend` adds what LLMEngine.step does around it (detokenisation, outputs). Their ratio is the
    share of the whole step. `outside_kernels` is Engine.step less the calls of the C++ backend: the model's
    Python too. It is left out where another backend computes.
    """
    figures = []
    for batch_size in batch_sizes:
        check_batch_size(engine, batch_size)
        for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            # one step gives the first token, the last one is not steady
            params = SamplingParams(max_tokens=steps + WARMUP_STEPS + 2, ignore_eos=True, **sampling)
            prompts = random_prompts([input_len] * batch_size, engine.engine.info.vocab_size, seed)
            with timing_kernels():
                run = run_batch(engine, prompts, params)
            steady = [step for step in run.steps if step.steady]
            case = f"{case_of(engine)} batch={batch_size} {name}"
            figures += _overhead_figures(case, steady[WARMUP_STEPS:][:steps])
    return figures


def _overhead_figures(case: str, steps: list[Step]) -> list[Figure]:
    if not steps:
        raise ConfigError(f"no steady decode step in {case}: the KV cache or the token budget is too small for it")
    step = median(step.whole for step in steps) * MS
    measured = {
        "step": ([step.whole for step in steps], None),
        "forward": ([step.forward for step in steps], step),
        "engine": ([step.engine - step.forward for step in steps], step),
        "engine+frontend": ([step.whole - step.forward for step in steps], step),
    }
    if any(step.kernels for step in steps):
        measured["outside_kernels"] = [step.engine - step.kernels for step in steps], step
    return [
        Figure(
            bench="overhead",
            case=case,
            metric=metric,
            unit="ms",
            samples=[seconds * MS for seconds in samples],
            baseline=baseline,
        )
        for metric, (samples, baseline) in measured.items()
    ]


def check_batch_size(engine: LLMEngine, batch_size: int) -> None:
    """Raises ConfigError if the engine does not run so many at once."""
    most = engine.engine.scheduler.config.max_num_seqs
    if batch_size > most:
        raise ConfigError(f"batch size {batch_size} is more than runs at once: raise --max-num-seqs ({most})")

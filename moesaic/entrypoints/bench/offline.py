"""Benchmarks of an engine in this process: latency of one batch, throughput of many prompts, overhead of a step.

Prompts are token ids drawn at random, new ones each run, so that the prefix cache finds nothing; every sequence
runs to its full length. Nothing here depends on what the model says.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter

from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.llm import LLM
from moesaic.engine.llm_engine import LLMEngine
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.workload import model_case, random_prompts

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
        steady: every sequence of the batch decoded one token in it, and none began or ended.
    """

    whole: float
    engine: float
    forward: float
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


def run_batch(engine: LLMEngine, prompts: Sequence[list[int]], params: SamplingParams) -> BatchRun:
    """Serve prompts as one batch, and time every step.

    Raises:
        MoesaicError: a request failed, so that the times mean nothing.
    """
    run = BatchRun()
    first_token: dict[str, float] = {}
    answers: dict[str, list[int]] = {}
    start = perf_counter()
    ids = [f"bench-{i}" for i in range(len(prompts))]
    for request_id, prompt in zip(ids, prompts, strict=True):
        engine.add_request(request_id, prompt, params)
    while engine.has_unfinished_requests():
        all_began = len(first_token) == len(ids)
        step_seconds, forward_seconds, computed = _clocks(engine)
        before = perf_counter()
        outputs = engine.step()
        now = perf_counter()
        after = _clocks(engine)
        _check(outputs)
        for output in outputs:
            first_token.setdefault(output.request_id, now - start)
            answers[output.request_id] = output.outputs[0].token_ids
        decoded = all_began and after[2] - computed == len(ids)
        steady = decoded and len(outputs) == len(ids) and not any(output.finished for output in outputs)
        run.steps.append(Step(now - before, after[0] - step_seconds, after[1] - forward_seconds, steady))
    run.seconds = perf_counter() - start
    run.first_token = [first_token[request_id] for request_id in ids]
    run.token_ids = [answers[request_id] for request_id in ids]
    return run


def _clocks(engine: LLMEngine) -> tuple[float, float, int]:
    """The engine's totals: seconds in steps, seconds in the model, tokens computed."""
    stats = engine.engine.stats
    return stats.step_seconds_total, stats.forward_seconds_total, stats.computed_tokens_total


def _check(outputs: Iterable[RequestOutput]) -> None:
    for output in outputs:
        if output.error is not None:
            raise MoesaicError(f"a request failed, nothing was measured: {output.error}")


def _case(engine: LLMEngine) -> str:
    info = engine.engine.info
    return model_case(info.names[0], info.dtype)


def latency(
    engine: LLMEngine, *, batch_size: int, input_len: int, output_len: int, runs: int, warmup: int, seed: int
) -> list[Figure]:
    """One batch of equal requests, greedy, `runs` times after `warmup` uncounted ones."""
    _check_batch_size(engine, batch_size)
    params = SamplingParams(max_tokens=output_len, ignore_eos=True, **GREEDY)
    counted = []
    for i in range(warmup + runs):
        prompts = random_prompts([input_len] * batch_size, engine.engine.info.vocab_size, seed + i)
        run = run_batch(engine, prompts, params)
        if i >= warmup:
            counted.append(run)
    steady = [[step.whole for step in run.steps if step.steady] for run in counted]
    measured = {
        ("run", "s"): [run.seconds for run in counted],
        ("time_to_first_token", "ms"): [median(run.first_token) * MS for run in counted],
        ("decode_step", "ms"): [mean(steps) * MS for steps in steady if steps],
        ("generated_tokens", "tokens/s"): [batch_size * output_len / run.seconds for run in counted],
    }
    case = f"{_case(engine)} batch={batch_size} in={input_len} out={output_len}"
    return [
        Figure(bench="latency", case=case, metric=metric, unit=unit, samples=samples)
        for (metric, unit), samples in measured.items()
        if samples  # a batch whose prompts outlast its outputs has no step that only decodes
    ]


def throughput(
    llm: LLM, *, num_prompts: int, input_len: int, output_len: int, spread: float, runs: int, warmup: int, seed: int
) -> list[Figure]:
    """Many prompts at once through `LLM.generate`, greedy.

    Args:
        input_len, output_len: means; each request's lengths lie within `spread` of them (0.5: half to one and a
            half times). The lengths are the same in every run, the token ids are not.
    """
    info = llm.llm_engine.engine.info
    draw = random.Random(seed)
    inputs = [_spread(draw, input_len, spread) for _ in range(num_prompts)]
    outputs = [_spread(draw, output_len, spread) for _ in range(num_prompts)]
    params = [SamplingParams(max_tokens=length, ignore_eos=True, **GREEDY) for length in outputs]
    seconds = []
    for i in range(warmup + runs):
        prompts = random_prompts(inputs, info.vocab_size, seed + i)
        start = perf_counter()
        results = llm.generate(prompts, params, use_tqdm=False)
        if i >= warmup:
            seconds.append(perf_counter() - start)
        _check(results)
    amounts = {
        ("requests", "requests/s"): num_prompts,
        ("prompt_tokens", "tokens/s"): sum(inputs),
        ("generated_tokens", "tokens/s"): sum(outputs),
        ("total_tokens", "tokens/s"): sum(inputs) + sum(outputs),
    }
    case = f"{_case(llm.llm_engine)} prompts={num_prompts} in~{input_len} out~{output_len}"
    return [
        Figure(bench="throughput", case=case, metric=metric, unit=unit, samples=[amount / s for s in seconds])
        for (metric, unit), amount in amounts.items()
    ]


def _spread(draw: random.Random, length: int, spread: float) -> int:
    return max(1, round(length * (1 + draw.uniform(-spread, spread))))


def overhead(engine: LLMEngine, *, batch_sizes: Sequence[int], input_len: int, steps: int, seed: int) -> list[Figure]:
    """What a step costs beside the model, while every sequence of a batch decodes; greedy, then sampled.

    `engine` is Engine.step less the model (planning, batch tensors, sampling, booking), both by the engine's own
    clock; `engine+frontend` adds what LLMEngine.step does around it (detokenisation, outputs). Their ratio is the
    share of the whole step.
    """
    figures = []
    for batch_size in batch_sizes:
        _check_batch_size(engine, batch_size)
        for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            # one step gives the first token, the last one is not steady
            params = SamplingParams(max_tokens=steps + WARMUP_STEPS + 2, ignore_eos=True, **sampling)
            prompts = random_prompts([input_len] * batch_size, engine.engine.info.vocab_size, seed)
            steady = [step for step in run_batch(engine, prompts, params).steps if step.steady]
            case = f"{_case(engine)} batch={batch_size} {name}"
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


def _check_batch_size(engine: LLMEngine, batch_size: int) -> None:
    most = engine.engine.scheduler.config.max_num_seqs
    if batch_size > most:
        raise ConfigError(f"batch size {batch_size} is more than runs at once: raise --max-num-seqs ({most})")

"""Load on a server over HTTP: requests that arrive at a rate or as others end, and how long clients wait."""

import asyncio
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter

from moesaic.core.errors import MoesaicError
from moesaic.entrypoints.bench.client import Client, Reply, ServerError
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.workload import random_prompts

MS = 1e3
STOP_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server.

    Attributes:
        inputs, outputs: tokens of each prompt and of its answer, in order of arrival.
        rate: requests a second, with Poisson's gaps between them; None sends all at once.
        concurrency: requests that may be under way at once; others wait for their turn, uncounted.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    rate: float | None
    concurrency: int | None
    seed: int


def serve_figures(client: Client, load: Load, model: str | None, vocab_size: int) -> list[Figure]:
    """Put the load on the server, after one request that does not count.

    Args:
        model: the name to ask for; the server's first by default.

    Raises:
        MoesaicError: the server cannot be reached, or no request succeeded.
    """
    try:
        model = model or asyncio.run(client.models())[0]["id"]
    except (ServerError, IndexError) as error:
        raise MoesaicError(f"the server cannot be measured: {error or 'it serves no model'}") from error
    prompts = random_prompts(load.inputs, vocab_size, load.seed)
    replies, seconds = asyncio.run(_send(client, load, model, prompts))
    case = " ".join(
        [
            model.rstrip("/").rpartition("/")[2],
            f"prompts={len(prompts)} in~{round(fmean(load.inputs))} out~{round(fmean(load.outputs))}",
            f"rate={'inf' if load.rate is None else f'{load.rate:g}'}",
            f"concurrency={load.concurrency or 'inf'}",
        ]
    )
    return figures_of(case, load, replies, seconds)


async def _send(client: Client, load: Load, model: str, prompts: list[list[int]]) -> tuple[list[Reply], float]:
    """The replies, in order of arrival, and the seconds from the first request to the last reply."""
    await client.complete(model, prompts[0][::-1], 2)  # warms up; reversed, so that no prefix of it is reused
    gate = asyncio.Semaphore(load.concurrency or len(prompts))
    draw = random.Random(load.seed)

    async def one(prompt: list[int], output: int) -> Reply:
        async with gate:
            return await client.complete(model, prompt, output)

    start = perf_counter()
    due, tasks = start, []
    for prompt, output in zip(prompts, load.outputs, strict=True):
        if load.rate is not None and tasks:
            due += draw.expovariate(load.rate)
            await asyncio.sleep(max(0.0, due - perf_counter()))
        tasks.append(asyncio.create_task(one(prompt, output)))
    replies = await asyncio.gather(*tasks)
    return list(replies), perf_counter() - start


def figures_of(case: str, load: Load, replies: Sequence[Reply], seconds: float) -> list[Figure]:
    """Rates over the whole time, and what each request felt. Failed requests count as failed, and nowhere else.

    Raises:
        MoesaicError: all failed.
    """
    good = [reply for reply in replies if reply.error is None]
    failed = Counter(reply.error for reply in replies if reply.error is not None)
    for reason, count in failed.most_common():
        print(f"{count} requests failed: {reason}", file=sys.stderr)
    if not good:
        raise MoesaicError(f"all {len(replies)} requests failed: {failed.most_common(1)[0][0] if failed else 'none'}")
    inputs = sum(size for size, reply in zip(load.inputs, replies, strict=True) if reply.error is None)
    outputs = sum(reply.tokens for reply in good)
    measured = [
        ("requests", "requests/s", [len(good) / seconds]),
        ("generated_tokens", "tokens/s", [outputs / seconds]),
        ("total_tokens", "tokens/s", [(inputs + outputs) / seconds]),
        ("failed", "requests", [float(len(replies) - len(good))]),
    ]
    waits = {
        "time_to_first_token": [reply.first_token_seconds for reply in good],
        "time_per_output_token": [each for reply in good if (each := reply.seconds_per_token) is not None],
        "request": [reply.last - reply.sent for reply in good],
    }
    for name, samples in waits.items():
        if samples:
            measured += [
                (f"{name}_mean", "ms", [fmean(samples) * MS]),
                (f"{name}_median", "ms", [sample * MS for sample in samples]),
                (f"{name}_p99", "ms", [percentile(samples, 99) * MS]),
            ]
    return [
        Figure(bench="serve", case=case, metric=metric, unit=unit, samples=samples)
        for metric, unit, samples in measured
    ]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The least sample that `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@contextmanager
def started_server(flags: Sequence[str]) -> Iterator[str]:
    """The address of a `moesaic serve` with these flags, on a free port; it ends with the block.

    Raises:
        MoesaicError: it did not start; it has said why on stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "moesaic", "serve", *flags, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready: "):
                yield line.split()[1]
                return
        raise MoesaicError(f"the server ended with status {process.wait()} before it was ready")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

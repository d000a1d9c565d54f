"""What seeing and steering the experts cost a decode step: `python -m benchmarks.routing_cost MODEL`.

Four engines decode the same prompts and take turns step by step, so that each step is compared with another's a moment
away, whatever else the machine does in the meantime:

- "plain": statistics are on, as always, and no function is registered;
- "no statistics": the same model built without them, which only this benchmark can do;
- "function": the function of docs/routing-functions.md, written in torch, with half of the requests tagged for it;
- "function, no tags": the same function in a batch where it changes nothing.

Figures are medians of decode steps, and ratios of pairs of them. Of a packed model (`moesaic convert --packed`) all
engines map the same weights; else they lie in other places of the memory for each, which alone can make 1 %.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import click
from torch import Tensor

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.engine.llm_engine import LLMEngine
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.workload import random_prompts
from moesaic.experts.function_types import DomainTags
from moesaic.experts.stats import ExpertStats

SETTINGS = PLAIN, WITHOUT, FUNCTION, UNTAGGED = "plain", "no statistics", "function", "function, no tags"
TAGGED: dict[str, Any] = {"tags": ["finance"]}


def domain_aware_routing(scores: Tensor, domain_tags: DomainTags) -> Tensor:
    """The second half of the experts counts a tenth for requests about finance."""
    finance_mask = domain_tags == "finance"
    scores[finance_mask, scores.shape[1] // 2 :] *= 0.1
    return scores


class Bench:
    """The engines, and their decode steps.

    Raises:
        ConfigError: the model has no experts.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.engines = {name: _build(model, name != WITHOUT, **options).llm_engine for name in SETTINGS}
        self.info = self.engines[PLAIN].engine.info
        if self.info.moe is None:
            raise ConfigError(f"{self.info.names[0]} has no experts")
        for name in (FUNCTION, UNTAGGED):
            self.engines[name].register_moe_routing_func(domain_aware_routing)

    def steps(self, batch_size: int, steps: int, warmup: int) -> dict[str, list[float]]:
        """Seconds of each decode step with each setting, all at the same step one after the other."""
        prompts = random_prompts([32] * batch_size, self.info.vocab_size, seed=batch_size)
        for name, engine in self.engines.items():
            _begin(engine, prompts, warmup + steps, (batch_size + 1) // 2 if name == FUNCTION else 0)
        times: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for step in range(warmup + steps):
            first = step % len(SETTINGS)
            for name in SETTINGS[first:] + SETTINGS[:first]:
                before = perf_counter()
                outputs = self.engines[name].step()
                times[name].append(perf_counter() - before)
                if len(outputs) != batch_size:
                    raise MoesaicError(f"a step of {batch_size} requests had {len(outputs)} outputs: {outputs}")
        for engine in self.engines.values():
            for i in range(batch_size):
                engine.abort_request(f"bench-{i}")
            engine.step()
        return {name: each[warmup:] for name, each in times.items()}


def _build(model: str, statistics: bool, **options: Any) -> LLM:
    """A model that counts its tokens, or does not."""
    ExpertStats.enabled = statistics
    try:
        return LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, **options)
    finally:
        ExpertStats.enabled = True


def _begin(engine: LLMEngine, prompts: list[list[int]], steps: int, tagged: int) -> None:
    """Requests that can decode for so many steps, `tagged` of them with a tag, up to the end of their prompts."""
    for i, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=steps + len(prompts) + 2,
            ignore_eos=True,
            routing=TAGGED if i < tagged else None,
        )
        engine.add_request(f"bench-{i}", prompt, params)
    began: set[str] = set()
    while len(began) < len(prompts):
        began |= {output.request_id for output in engine.step()}


def figures(bench: Bench, batch_size: int, steps: int, warmup: int) -> list[Figure]:
    """A figure for each setting; each is compared with "plain" at the same step, "plain" with "no statistics"."""
    times = bench.steps(batch_size, steps, warmup)
    model = bench.info.names[0].rstrip("/").rsplit("/", 1)[-1]
    beside = {PLAIN: WITHOUT, FUNCTION: PLAIN, UNTAGGED: PLAIN}
    return [
        Figure(
            bench="routing_cost",
            case=f"{model} batch {batch_size}, {name}",
            metric="decode step",
            unit="ms",
            samples=[1e3 * seconds for seconds in times[name]],
            baselines=[1e3 * seconds for seconds in times[beside[name]]] if name in beside else None,
        )
        for name in SETTINGS
    ]


@click.command()
@click.argument("model", default="moe-model")
@click.option("--batch-size", "sizes", type=click.IntRange(min=1), multiple=True, default=(1, 32), show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="that count")
@click.option("--warmup", type=click.IntRange(min=0), default=8, show_default=True, help="steps before them")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="of the model; as a server has by default")
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(model: str, sizes: Sequence[int], steps: int, warmup: int, threads: int | None, json_only: bool) -> None:
    """Decode steps of MODEL with and without statistics and a routing function."""
    bench = Bench(model, threads=threads, kv_cache_memory="256MiB")
    measured = [figure for size in sizes for figure in figures(bench, size, steps, warmup)]
    report(measured, bench.info.description, json_only)


if __name__ == "__main__":
    main()

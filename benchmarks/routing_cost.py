"""What seeing and steering the experts cost a decode step: `python -m benchmarks.routing_cost MODEL`.

Three settings take turns, each decoding the same prompts, so that a ratio is of runs a moment apart:

- "plain": statistics are on, as always, and no function is registered;
- "no statistics": the same model built without them, which only this benchmark can do;
- "function": the function of docs/routing-functions.md, written in torch, with half of the requests tagged for it.

"function, no tags" is the same function in a batch where it changes nothing. Figures are medians of decode steps.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import click
from torch import Tensor

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError
from moesaic.entrypoints.bench.offline import run_batch
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.workload import random_prompts
from moesaic.experts.function_types import DomainTags
from moesaic.experts.stats import ExpertStats

PLAIN, WITHOUT, FUNCTION, UNTAGGED = "plain", "no statistics", "function", "function, no tags"
TAGGED: dict[str, Any] = {"tags": ["finance"]}


def domain_aware_routing(scores: Tensor, domain_tags: DomainTags) -> Tensor:
    """The second half of the experts counts a tenth for requests about finance."""
    finance_mask = domain_tags == "finance"
    scores[finance_mask, scores.shape[1] // 2 :] *= 0.1
    return scores


def build(model: str, statistics: bool, **options: Any) -> LLM:
    """A model that counts its tokens, or does not."""
    ExpertStats.enabled = statistics
    try:
        return LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, **options)
    finally:
        ExpertStats.enabled = True


class Bench:
    """The models, and a decode step's time with each setting.

    Raises:
        ConfigError: the model has no experts.
    """

    def __init__(self, model: str, tokens: int, **options: Any) -> None:
        self.tokens = tokens
        self.counting = build(model, True, **options)
        self.info = self.counting.llm_engine.engine.info
        if self.info.moe is None:
            raise ConfigError(f"{self.info.names[0]} has no experts")
        self.silent = build(model, False, **options)

    def turn(self, batch_size: int, seed: int) -> dict[str, float]:
        """Seconds of the median decode step with each setting, one after the other; who is first changes by `seed`."""
        prompts = random_prompts([32] * batch_size, self.info.vocab_size, seed)
        settings: list[tuple[str, Callable[[], float]]] = [
            (PLAIN, lambda: self._step(self.counting, prompts, 0)),
            (WITHOUT, lambda: self._step(self.silent, prompts, 0)),
            (FUNCTION, lambda: self._with_function(prompts, (batch_size + 1) // 2)),
            (UNTAGGED, lambda: self._with_function(prompts, 0)),
        ]
        first = seed % len(settings)
        return {name: measure() for name, measure in settings[first:] + settings[:first]}

    def _with_function(self, prompts: list[list[int]], tagged: int) -> float:
        name = self.counting.register_moe_routing_func(domain_aware_routing)
        try:
            return self._step(self.counting, prompts, tagged)
        finally:
            self.counting.unregister_moe_routing_func(name)

    def _step(self, llm: LLM, prompts: list[list[int]], tagged: int) -> float:
        routings = [TAGGED if i < tagged else None for i in range(len(prompts))]
        params = [
            SamplingParams(temperature=0.0, max_tokens=self.tokens, ignore_eos=True, routing=routing)
            for routing in routings
        ]
        return median(step.whole for step in run_batch(llm.llm_engine, prompts, params).steps if step.steady)


def figures(bench: Bench, batch_size: int, runs: int, warmup: int) -> list[Figure]:
    """A figure for each setting; each is compared with the same turn's "plain", "plain" with "no statistics"."""
    counted = [bench.turn(batch_size, seed) for seed in range(warmup + runs)][warmup:]
    model = bench.info.names[0].rstrip("/").rsplit("/", 1)[-1]
    beside = {PLAIN: WITHOUT, FUNCTION: PLAIN, UNTAGGED: PLAIN}
    return [
        Figure(
            bench="routing_cost",
            case=f"{model} batch {batch_size}, {name}",
            metric="decode step",
            unit="ms",
            samples=[1e3 * times[name] for times in counted],
            baselines=[1e3 * times[beside[name]] for times in counted] if name in beside else None,
        )
        for name in counted[0]
    ]


@click.command()
@click.argument("model", default="moe-model")
@click.option("--batch-size", "sizes", type=click.IntRange(min=1), multiple=True, default=(1, 32), show_default=True)
@click.option("--tokens", type=click.IntRange(min=8), default=32, show_default=True, help="decoded in each run")
@click.option("--runs", type=click.IntRange(min=1), default=9, show_default=True, help="turns that count")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="of the model; as a server has by default")
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(
    model: str, sizes: Sequence[int], tokens: int, runs: int, warmup: int, threads: int | None, json_only: bool
) -> None:
    """Decode steps of MODEL with and without statistics and a routing function."""
    bench = Bench(model, tokens, threads=threads, kv_cache_memory="256MiB")
    measured = [figure for size in sizes for figure in figures(bench, size, runs, warmup)]
    report(measured, bench.info.description, json_only)


if __name__ == "__main__":
    main()

"""How much faster a request decodes that asks for fewer experts a token: `python -m benchmarks.routing_top_k MODEL`.

One sequence at a time (or `--batch-size`), its own top_k beside the model's, in turns: each turn decodes the same
prompt with every setting, so that a ratio is of two runs a moment apart. "rules alone" is a rule that leaves the routes
as they are: what steering itself costs. Random weights say nothing of answers; the embedded model's scores at
each top_k are in `python -m benchmarks.steering`.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import click

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError
from moesaic.entrypoints.bench.offline import run_batch
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.workload import random_prompts

OWN, RULES = "the model's own", "rules alone"
Settings = dict[str, dict[str, Any] | None]


def settings(own: int, ks: Sequence[int]) -> Settings:
    """Name -> routing options."""
    return {OWN: None, RULES: {"top_k": own}} | {f"top_k {k}": {"top_k": k} for k in ks}


def step_times(llm: LLM, chosen: Settings, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    """Seconds of the median decode step with each setting, one after the other."""
    times = {}
    for name, routing in chosen.items():
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, routing=routing)
        run = run_batch(llm.llm_engine, prompts, params)
        times[name] = median(step.whole for step in run.steps if step.steady)
    return times


def measure(llm: LLM, ks: Sequence[int], batch_size: int, tokens: int, runs: int, warmup: int) -> list[Figure]:
    """A figure for each setting, beside the model's own.

    Raises:
        ConfigError: the model has no experts.
    """
    info = llm.llm_engine.engine.info
    if info.moe is None:
        raise ConfigError(f"{info.names[0]} has no experts")
    chosen = settings(max(layer.top_k for layer in info.moe.layers), ks)
    taken = []
    for turn in range(warmup + runs):
        prompts = random_prompts([32] * batch_size, info.vocab_size, turn)
        taken.append(step_times(llm, chosen, prompts, tokens))
    counted = taken[warmup:]
    case = f"{info.names[0].rstrip('/').rsplit('/', 1)[-1]} batch {batch_size}"
    return [
        Figure(
            bench="routing_top_k",
            case=f"{case}, {name}",
            metric="decode step",
            unit="ms",
            samples=[1e3 * times[name] for times in counted],
            baselines=None if name == OWN else [1e3 * times[OWN] for times in counted],
        )
        for name in chosen
    ]


@click.command()
@click.argument("model", default="moe-model")
@click.option("--k", "ks", type=click.IntRange(min=1), multiple=True, default=(4, 2, 1), show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--tokens", type=click.IntRange(min=8), default=64, show_default=True, help="decoded in each run")
@click.option("--runs", type=click.IntRange(min=1), default=7, show_default=True, help="turns that count")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(
    model: str, ks: tuple[int, ...], batch_size: int, tokens: int, runs: int, warmup: int, json_only: bool
) -> None:
    """Decode steps of MODEL at its own top_k and at others."""
    llm = LLM(model, enable_prefix_caching=False, max_num_seqs=max(8, batch_size))
    figures = measure(llm, ks, batch_size, tokens, runs, warmup)
    report(figures, llm.llm_engine.engine.info.description, json_only)


if __name__ == "__main__":
    main()

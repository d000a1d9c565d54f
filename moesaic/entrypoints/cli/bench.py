"""`moesaic bench`: how fast a model runs here. Each benchmark prints a table, then one JSON line a figure."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from moesaic.core.log import setup_logging
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.options import engine_args, options_of

POSITIVE = click.IntRange(min=1)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@click.group("bench")
def command() -> None:
    """Measure MODEL on this machine (the embedded moe-model without one), on random token ids."""
    os.environ.setdefault("MOESAIC_LOG_LEVEL", "WARNING")  # figures are what one wants to read
    setup_logging()


def size(flag: str, default: int, text: str, least: int = 1) -> Decorator:
    """A flag that takes a whole number."""
    return click.option(flag, type=click.IntRange(min=least), default=default, show_default=True, help=text)


def repeated(runs: int) -> Decorator:
    """The flags of a benchmark that repeats its work."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = size("--warmup", 1, "runs before them that do not count", least=0)(function)
        return size("--runs", runs, "runs that count; figures are their medians")(function)

    return decorate


def benchmark(name: str) -> Decorator:
    """A subcommand with what all have: MODEL, --json-only, and the engine's flags as `serve` takes them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = options_of(EngineArgs)(function)
        function = click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")(function)
        function = click.argument("model_path", metavar="[MODEL]", required=False)(function)
        return command.command(name)(function)

    return decorate


@benchmark("latency")
@size("--batch-size", 1, "requests at once")
@size("--input-len", 32, "tokens of each prompt")
@size("--output-len", 128, "tokens to generate for each")
@repeated(runs=5)
def latency(
    model_path: str | None,
    batch_size: int,
    input_len: int,
    output_len: int,
    runs: int,
    warmup: int,
    json_only: bool,
    **values: Any,
) -> None:
    """One batch of equal requests: time of the run, to the first token, and of a decode step."""
    args = engine_args(model_path, values)
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.entrypoints.bench import offline, report

    engine = LLMEngine.from_engine_args(args)
    figures = offline.latency(
        engine,
        batch_size=batch_size,
        input_len=input_len,
        output_len=output_len,
        runs=runs,
        warmup=warmup,
        seed=args.seed,
    )
    report.report(figures, engine.engine.info.description, json_only)


@benchmark("throughput")
@size("--num-prompts", 128, "prompts, all there at the start")
@size("--input-len", 256, "mean tokens of a prompt")
@size("--output-len", 64, "mean tokens to generate for each")
@click.option(
    "--spread",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="how far lengths lie from their means: 0.5 draws them from half to one and a half times",
)
@repeated(runs=3)
def throughput(
    model_path: str | None,
    num_prompts: int,
    input_len: int,
    output_len: int,
    spread: float,
    runs: int,
    warmup: int,
    json_only: bool,
    **values: Any,
) -> None:
    """Many prompts of random lengths at once: requests and tokens a second."""
    args = engine_args(model_path, values)
    from moesaic.engine.llm import LLM
    from moesaic.entrypoints.bench import offline, report

    llm = LLM(**asdict(args))
    figures = offline.throughput(
        llm,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        spread=spread,
        runs=runs,
        warmup=warmup,
        seed=args.seed,
    )
    report.report(figures, llm.llm_engine.engine.info.description, json_only)


@benchmark("overhead")
@click.option(
    "--batch-size", "batch_sizes", type=POSITIVE, multiple=True, default=(1, 32), show_default=True, help="repeatable"
)
@size("--input-len", 32, "tokens of each prompt")
@size("--steps", 200, "decode steps that count; figures are their medians")
def overhead(
    model_path: str | None,
    batch_sizes: tuple[int, ...],
    input_len: int,
    steps: int,
    json_only: bool,
    **values: Any,
) -> None:
    """What a decode step costs beside the model: planning, sampling, booking, detokenisation."""
    args = engine_args(model_path, values)
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.entrypoints.bench import offline, report

    engine = LLMEngine.from_engine_args(args)
    figures = offline.overhead(engine, batch_sizes=batch_sizes, input_len=input_len, steps=steps, seed=args.seed)
    report.report(figures, engine.engine.info.description, json_only)

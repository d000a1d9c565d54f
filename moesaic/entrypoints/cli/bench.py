"""`moesaic bench`: how fast a model runs here. Each benchmark prints a table, then one JSON line a figure."""

import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from moesaic.core.log import setup_logging
from moesaic.engine.args import EMBEDDED_MODEL, EngineArgs
from moesaic.entrypoints.cli.options import engine_args, options_of

POSITIVE = click.IntRange(min=1)
REMOTE_VOCABULARY = 1000  # token ids that any model has
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


SPREAD = click.option(
    "--spread",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="how far lengths lie from their means: 0.5 draws them from half to one and a half times",
)


class BatchByLength(click.ParamType):
    """`8x512`: a batch of 8 prompts of 512 tokens."""

    name = "BATCHxLENGTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        batch, _, length = str(value).partition("x")
        if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
            self.fail(f"{value!r} is no batch and length such as 8x512", param, ctx)
        return int(batch), int(length)


@benchmark("latency")
@click.option(
    "--batch-size", "batch_sizes", type=POSITIVE, multiple=True, default=(1,), show_default=True, help="repeatable"
)
@size("--input-len", 32, "tokens of each prompt")
@size("--output-len", 128, "tokens to generate for each")
@click.option(
    "--prefill",
    "prefills",
    type=BatchByLength(),
    multiple=True,
    help="also this many prompts of this length, until their first tokens, such as 8x512; repeatable",
)
@repeated(runs=5)
def latency(
    model_path: str | None,
    batch_sizes: tuple[int, ...],
    input_len: int,
    output_len: int,
    prefills: tuple[tuple[int, int], ...],
    runs: int,
    warmup: int,
    json_only: bool,
    **values: Any,
) -> None:
    """One batch of equal requests: time of the run, to the first token, and of a decode step, beside their floors."""
    args = engine_args(model_path, values)
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.entrypoints.bench import offline, report

    engine = LLMEngine.from_engine_args(args)
    shapes = [offline.Shape(batch, input_len, output_len) for batch in batch_sizes]
    shapes += [offline.Shape(batch, length, 1) for batch, length in prefills]
    figures = offline.latency(engine, shapes, runs=runs, warmup=warmup, seed=args.seed)
    report.report(figures, engine.engine.info.description, json_only)


@benchmark("throughput")
@size("--num-prompts", 128, "prompts, all there at the start")
@size("--input-len", 256, "mean tokens of a prompt")
@size("--output-len", 64, "mean tokens to generate for each")
@SPREAD
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


@benchmark("start")
@size("--runs", 5, "starts of each way")
def start(model_path: str | None, runs: int, json_only: bool, **values: Any) -> None:
    """From nothing to the first token: seconds by part, and peak memory, with files cached and from the disk."""
    args = engine_args(model_path, values)
    from moesaic.entrypoints.bench import report, starting

    report.report(starting.start(args, runs), "start (baseline of the peak: weights, KV and an idle torch)", json_only)


@benchmark("neighbour")
@size("--batch-size", 1, "requests at once")
@size("--input-len", 32, "tokens of each prompt")
@size("--output-len", 64, "tokens to generate for each")
@repeated(runs=5)
def neighbour(
    model_path: str | None,
    batch_size: int,
    input_len: int,
    output_len: int,
    runs: int,
    warmup: int,
    json_only: bool,
    **values: Any,
) -> None:
    """Decoding alone, and while another process keeps one of the cores busy."""
    args = engine_args(model_path, values)
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.entrypoints.bench import neighbour, report

    engine = LLMEngine.from_engine_args(args)
    figures = neighbour.neighbour(
        engine,
        batch_size=batch_size,
        input_len=input_len,
        output_len=output_len,
        runs=runs,
        warmup=warmup,
        seed=args.seed,
    )
    report.report(figures, engine.engine.info.description, json_only)


@benchmark("serve")
@click.option("--url", metavar="URL", help="of a running OpenAI-compatible server; else one is started with the flags")
@click.option("--api-key", envvar="MOESAIC_API_KEY", help="of that server")
@click.option("--vocab-size", type=POSITIVE, help="prompts are token ids below this; the model's, or 1000 with --url")
@size("--num-prompts", 100, "requests in all")
@size("--input-len", 128, "mean tokens of a prompt")
@size("--output-len", 64, "mean tokens to generate for each")
@SPREAD
@click.option(
    "--request-rate",
    type=click.FloatRange(0, min_open=True),
    default=float("inf"),
    show_default=True,
    help="requests a second, with random (Poisson) gaps; inf sends all at once",
)
@click.option("--max-concurrency", type=POSITIVE, help="requests under way at once; without a bound by default")
@click.option("--timeout", type=POSITIVE, default=600, show_default=True, help="seconds that a request may take")
def serve(
    model_path: str | None,
    url: str | None,
    api_key: str | None,
    vocab_size: int | None,
    num_prompts: int,
    input_len: int,
    output_len: int,
    spread: float,
    request_rate: float,
    max_concurrency: int | None,
    timeout: int,
    json_only: bool,
    **values: Any,
) -> None:
    """Requests over HTTP, to a server that runs or is started: rates, and how long clients wait.

    With --url MODEL is a name that the server serves (its first without one), and the engine's flags mean nothing.
    """
    args = engine_args(model_path, values)
    from moesaic.entrypoints.bench import report, serving
    from moesaic.entrypoints.bench.client import Client
    from moesaic.entrypoints.bench.workload import spread_lengths

    load = serving.Load(
        inputs=spread_lengths(num_prompts, input_len, spread, args.seed),
        outputs=spread_lengths(num_prompts, output_len, spread, args.seed + 1),
        rate=None if request_rate == float("inf") else request_rate,
        concurrency=max_concurrency,
        seed=args.seed,
    )
    if url is not None:
        name = None if args.model == EMBEDDED_MODEL else args.model
        figures = serving.serve_figures(Client(url, api_key, timeout), load, name, vocab_size or REMOTE_VOCABULARY)
    else:
        from moesaic.engine.resolve import find_model
        from moesaic.models.load import read_spec

        _, spec = read_spec(find_model(args.model, args.revision, args.download_dir))
        with serving.started_server(flags_of(args)) as url:
            figures = serving.serve_figures(Client(url, api_key, timeout), load, None, vocab_size or spec.vocab_size)
    report.report(figures, url, json_only)


# name -> what it measures; each a module moesaic.entrypoints.bench.<name> with `figures(threads, runs) -> list[Figure]`
WITHOUT_MODEL = {
    "kernels": "The experts' kernel at every precision, beside the machine's limits.",
    "attention": "Paged attention, beside the machine's limits.",
}


def _without_model(name: str, text: str) -> None:
    """Add the command of a benchmark that needs no model."""

    @size("--runs", 5, "runs that count; figures are their medians")
    @click.option("--threads", type=POSITIVE, help="CPU threads; the physical cores by default")
    @click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
    def run(runs: int, threads: int | None, json_only: bool) -> None:
        import torch

        from moesaic.engine.resolve import physical_cores
        from moesaic.entrypoints.bench import report

        torch.set_num_threads(threads or physical_cores())
        module = import_module(f"moesaic.entrypoints.bench.{name}")
        report.report(module.figures(torch.get_num_threads(), runs), name, json_only)

    command.command(name, help=text)(run)


for _name, _text in WITHOUT_MODEL.items():
    if find_spec(f"moesaic.entrypoints.bench.{_name}"):
        _without_model(_name, _text)


def flags_of(args: EngineArgs) -> list[str]:
    """The command line that gives these arguments."""
    flags = []
    for f in fields(EngineArgs):
        value, default = getattr(args, f.name), f.default_factory() if f.default is MISSING else f.default
        flag = "--" + f.name.replace("_", "-")
        if value == default:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            for one in value if isinstance(value, list) else [value]:
                flags += [flag, str(one)]
    return flags

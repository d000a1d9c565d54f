"""What a precision costs: perplexity, scores and logits at each, against float32. `python -m benchmarks.quality`.

On the embedded model: perplexity of the answers in a text that training never saw (see `held_out_text`), the share of
held-out additions and JSON requests that it gets right, and how far logits lie from float32's. `--random` makes models
of random weights with outliers instead (a few large weights, a few loud channels), of which logits are compared.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.make_checkpoint import SHAPES, make
from moesaic import LLM, SamplingParams
from moesaic.core.errors import MoesaicError
from moesaic.engine.args import EMBEDDED_MODEL
from moesaic.entrypoints.bench.report import PIPE_WIDTH, Figure
from moesaic.entrypoints.bench.workload import random_prompts
from moesaic.experts.layer import MoE
from moesaic.experts.routing import Routing
from tools.train_embedded import arithmetic, prose, structured
from tools.train_embedded.evaluate import shape
from tools.train_embedded.tokenizer import ASSISTANT, END, USER

ORACLE = "float32"
# name -> arguments of the engine; what is not quantised stays in float32, so that a column shows the quantiser alone
PRECISIONS: dict[str, dict[str, Any]] = {
    ORACLE: {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "w8a16": {"dtype": "float32", "quantization": "w8a16"},
    "w4a16": {"dtype": "float32", "quantization": "w4a16"},
    "w8a8": {"dtype": "float32", "quantization": "w8a8"},
}
ADDITION_TOKENS = 6
JSON_TOKENS = 256
RANDOM_SIZES = {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 16,
    "num_local_experts": 16,
}
OUTLIERS = 0.001  # share of weights that are larger
OUTLIER_FACTOR = 8.0
LOUD_CHANNELS = 0.01  # share of channels whose norm weight is larger
LOUD_FACTOR = 8.0


@dataclass(frozen=True)
class Text:
    """A prompt with its answer; only the answer's tokens count."""

    domain: str
    prompt: str
    answer: str


def chat(question: str) -> str:
    """A question as the embedded model's chat template writes it."""
    return USER + question + END + ASSISTANT


def held_out_text(count: int, seed: int = 0) -> list[Text]:
    """Answers to `count` held-out additions and `count` held-out JSON requests, and `count` texts of prose from a seed
    that training did not use (their sentences are of the same few hundred, put together anew)."""
    rng = Random(f"quality {seed}")
    additions = arithmetic.held_out_additions()
    pairs = [additions[i * len(additions) // count % len(additions)] for i in range(count)]
    texts = [Text("arithmetic", chat(f"What is {a} + {b}?"), f"{a + b}{END}") for a, b in pairs]
    for _ in range(count):
        prompt, answer, _ = structured.request(rng, held_out=True)
        texts.append(Text("json", chat(prompt), answer + END))
        question, said = prose.chat_pair(rng)
        texts.append(Text("prose", chat(question), said + END))
    return texts


Routings = dict[int, list[Routing]]  # layer -> of each call of it, in order


@dataclass
class Result:
    """What one precision gave."""

    figures: dict[str, tuple[float, str]] = field(default_factory=dict)  # metric -> value, unit
    logits: list[Tensor] = field(default_factory=list)
    routings: Routings = field(default_factory=dict)  # of `logits`


@contextmanager
def kept_logits(llm: LLM) -> Iterator[list[Tensor]]:
    """All logits that the model computes meanwhile."""
    model: Any = llm.llm_engine.engine.executor.model
    plain: Callable[..., Tensor] = model.logits
    kept: list[Tensor] = []

    def logits(*args: Any, **kwargs: Any) -> Tensor:
        rows = plain(*args, **kwargs)
        kept.append(rows.float().clone())
        return rows

    model.logits = logits
    try:
        yield kept
    finally:
        del model.logits


@contextmanager
def routed(llm: LLM, forced: Routings | None) -> Iterator[Routings]:
    """Each MoE layer's routing meanwhile: kept, or, if there are `forced` ones, replaced by them call after call."""
    layers = [layer for layer in llm.llm_engine.engine.executor.model.modules() if isinstance(layer, MoE)]
    kept: Routings = {index: [] for index in range(len(layers))}

    def wrap(index: int, layer: MoE) -> Callable[[Tensor], Routing]:
        plain, given = layer.route, iter(forced[index] if forced else ())

        def route(hidden: Tensor) -> Routing:
            routing = next(given) if forced else plain(hidden)
            kept[index].append(replace(routing, ids=routing.ids.clone(), weights=routing.weights.clone()))
            return routing

        return route

    for index, layer in enumerate(layers):
        layer.route = wrap(index, layer)  # type: ignore[assignment]
    try:
        yield kept
    finally:
        for layer in layers:
            del layer.route


def logits_of(llm: LLM, prompts: Sequence[list[int]], forced: Routings | None = None) -> tuple[list[Tensor], Routings]:
    """The logits at every token of each prompt, one prompt at a time, and the routing behind them."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=0)
    with kept_logits(llm) as kept, routed(llm, forced) as routings:
        for prompt in prompts:
            llm.generate([prompt], params, use_tqdm=False)
    return kept, routings


def relative_errors(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """|ours - exact| / |exact| of the median token, and over all; each row less its mean, on which nothing depends.

    The two differ where a token's router was nearly undecided: another expert answers, whatever the precision, and a
    few tokens with errors of a half outweigh all others in the second figure. With the oracle's routing forced on both,
    the second figure is what the precision does to the products alone.
    """
    a, b = (torch.cat(list(rows)).double() for rows in (ours, exact))  # [T, V]
    a, b = (rows - rows.mean(-1, keepdim=True) for rows in (a, b))
    each = (a - b).norm(dim=-1) / b.norm(dim=-1)
    return float(each.median()), float((a - b).norm() / b.norm())


def changed_routing(ours: Routings, exact: Routings) -> float:
    """The share of choices (token, layer, expert) that the other run did not make."""
    lost = total = 0
    for layer, calls in exact.items():
        for a, b in zip(ours[layer], calls, strict=True):
            lost += int((a.ids[:, :, None] != b.ids[:, None, :]).all(-1).sum())
            total += b.ids.numel()
    return lost / total


def perplexities(llm: LLM, texts: Sequence[Text]) -> dict[str, float]:
    """Of the answers, by domain and over all of them."""
    assert llm.tokenizer is not None
    encode = llm.tokenizer.encode
    prompts = [encode(text.prompt, add_special_tokens=False) for text in texts]
    answers = [encode(text.answer, add_special_tokens=False) for text in texts]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(
        [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], params, use_tqdm=False
    )
    losses: dict[str, list[float]] = {}
    for text, answer, output in zip(texts, answers, outputs, strict=True):
        assert output.prompt_logprobs is not None
        rows = output.prompt_logprobs[-len(answer) :]
        lost = [-row[token].logprob for row, token in zip(rows, answer, strict=True) if row is not None]
        losses.setdefault(text.domain, []).extend(lost)
        losses.setdefault("all", []).extend(lost)
    return {domain: math.exp(sum(lost) / len(lost)) for domain, lost in losses.items()}


def answers_of(llm: LLM, prompts: list[str], limit: int, routing: Any = None) -> list[tuple[str, bool]]:
    """The greedy answer to each prompt, and whether it ended by itself; `routing` is that of SamplingParams."""
    assert llm.tokenizer is not None
    ids = [llm.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=limit, routing=routing)
    outputs = llm.generate(ids, params, use_tqdm=False)
    return [(output.outputs[0].text, output.outputs[0].finish_reason == "stop") for output in outputs]


def addition_score(llm: LLM, count: int, template: Callable[[int, int], str], routing: Any = None) -> float:
    """Exact answers to held-out additions."""
    pairs = arithmetic.held_out_additions()
    pairs = pairs[:: max(1, len(pairs) // count)]
    made = answers_of(llm, [template(a, b) for a, b in pairs], ADDITION_TOKENS, routing)
    right = [ended and text.strip() == str(a + b) for (a, b), (text, ended) in zip(pairs, made, strict=True)]
    return sum(right) / len(right)


def json_scores(llm: LLM, count: int, routing: Any = None) -> tuple[float, float]:
    """Answers to held-out requests that parse, and those that have just the keys asked for.

    The requests are those of `tools.train_embedded.evaluate` with its default seed.
    """
    rng = Random("evaluate json 0")
    distinct: dict[str, Any] = {}
    while len(distinct) < count:
        prompt, _, value = structured.request(rng, held_out=True)
        distinct.setdefault(prompt, value)
    made = answers_of(llm, [chat(prompt) for prompt in distinct], JSON_TOKENS, routing)
    valid = keys = 0
    for wanted, (text, _) in zip(distinct.values(), made, strict=True):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        valid += 1
        keys += shape(value) == shape(wanted)
    return valid / count, keys / count


def measure_embedded(llm: LLM, exact: Result | None, count: int) -> Result:
    """Perplexities, scores and logits of the embedded model; `exact` is the oracle's result."""
    texts = held_out_text(count)
    result = Result()
    for domain, value in perplexities(llm, texts).items():
        result.figures[f"perplexity {domain}"] = value, ""
    result.figures["additions, chat"] = (
        addition_score(llm, 4 * count, lambda a, b: chat(f"What is {a} + {b}?")),
        "share",
    )
    result.figures["additions, bare"] = addition_score(llm, 4 * count, lambda a, b: f"{a}+{b}="), "share"
    valid, keys = json_scores(llm, 2 * count)
    result.figures["JSON parses"] = valid, "share"
    result.figures["JSON has the keys"] = keys, "share"
    assert llm.tokenizer is not None
    whole = [llm.tokenizer.encode(text.prompt + text.answer, add_special_tokens=False) for text in texts[-count:]]
    measure_logits(llm, whole, exact, result)
    return result


def measure_random(llm: LLM, exact: Result | None, count: int) -> Result:
    """Logits of a random model on random tokens; `exact` is the oracle's result."""
    prompts = random_prompts([32] * max(1, count // 8), llm.llm_engine.engine.info.vocab_size, 0)
    result = Result()
    measure_logits(llm, prompts, exact, result)
    return result


def measure_logits(llm: LLM, prompts: Sequence[list[int]], exact: Result | None, result: Result) -> None:
    """Fill `result` with the logits of prompts, and, against the oracle's, with their errors."""
    result.logits, result.routings = logits_of(llm, prompts)
    if exact is None:
        return
    median, whole = relative_errors(result.logits, exact.logits)
    forced, _ = logits_of(llm, prompts, exact.routings)
    result.figures["logits, error of the median token"] = median, ""
    result.figures["logits, error over all tokens"] = whole, ""
    result.figures["logits, error over all tokens, float32's routing"] = relative_errors(forced, exact.logits)[1], ""
    result.figures["choices of experts that changed"] = changed_routing(result.routings, exact.routings), "share"


def make_random(shape_name: str, folder: Path) -> Path:
    """A small checkpoint of a published shape, its weights wide enough to matter, with outliers."""
    from safetensors.torch import load_file, save_file

    known = SHAPES[shape_name][1]
    make(shape_name, folder, tokenizer=False, **{key: value for key, value in RANDOM_SIZES.items() if key in known})
    draw = torch.Generator().manual_seed(1)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            noise = torch.rand(tensor.shape, generator=draw)
            if tensor.dim() == 1:
                tensor[noise < LOUD_CHANNELS] *= LOUD_FACTOR
            elif "embed" not in name:
                tensor *= tensor.shape[-1] ** -0.5 / tensor.float().std()
                tensor[noise < OUTLIERS] *= OUTLIER_FACTOR
            else:
                tensor /= tensor.float().std()
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def compare(
    model: str,
    name: str,
    precisions: Sequence[str],
    engine: dict[str, Any],
    measure: Callable[[LLM, Result | None], Result],
) -> list[Figure]:
    """Every precision's figures; float32's are the baselines. What the engine refuses is left out, with a remark."""
    figures: list[Figure] = []
    exact: Result | None = None
    for precision in dict.fromkeys((ORACLE, *precisions)):
        try:
            llm = LLM(model, **engine, **PRECISIONS[precision])
        except MoesaicError as error:
            click.echo(f"{precision} skipped: {error}", err=True)
            continue
        result = measure(llm, exact)
        exact = exact or result
        figures += [
            Figure(
                bench="quality",
                case=f"{name} {precision}",
                metric=metric,
                unit=unit,
                samples=[value],
                baseline=None if result is exact or metric not in exact.figures else exact.figures[metric][0],
            )
            for metric, (value, unit) in result.figures.items()
        ]
    return figures


def table(figures: Sequence[Figure], title: str) -> Table:
    """A row a metric, a column a precision."""
    columns = list(dict.fromkeys(figure.case for figure in figures))
    values = {(figure.metric, figure.case): figure for figure in figures}
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for column in columns:
        made.add_column(column.rpartition(" ")[2], justify="right")
    for metric in dict.fromkeys(figure.metric for figure in figures):
        cells = []
        for column in columns:
            figure = values.get((metric, column))
            cells.append("" if figure is None else _cell(figure))
        made.add_row(metric, *cells)
    return made


def _cell(figure: Figure) -> str:
    return f"{figure.value:.2%}" if figure.unit == "share" else f"{figure.value:.5g}"


@click.command()
@click.option("--model", default=EMBEDDED_MODEL, show_default=True, help="the embedded model, or another export of it")
@click.option("--random", "random_models", is_flag=True, help="random models with outliers instead")
@click.option(
    "--precision", "precisions", type=click.Choice(list(PRECISIONS)), multiple=True, default=tuple(PRECISIONS)
)
@click.option("--group-size", type=int, help="inputs that share a scale, of quantised precisions")
@click.option("--count", type=click.IntRange(min=8), default=200, show_default=True, help="texts of each domain")
@click.option("--threads", type=int)
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(
    model: str,
    random_models: bool,
    precisions: tuple[str, ...],
    group_size: int | None,
    count: int,
    threads: int | None,
    json_only: bool,
) -> None:
    """Set every precision against float32."""
    engine: dict[str, Any] = {"threads": threads, "kv_cache_memory": "256MiB", "enable_prefix_caching": False}
    if group_size is not None:
        engine["quantization_group_size"] = group_size
    tables = []
    if random_models:
        with tempfile.TemporaryDirectory() as folder:
            for name in SHAPES:
                path = str(make_random(name, Path(folder) / name))
                case = f"random {name}"
                run = compare(
                    path,
                    case,
                    precisions,
                    engine | {"skip_tokenizer_init": True},
                    partial(measure_random, count=count),
                )
                tables.append((case, run))
    else:
        run = compare(model, Path(model).name, precisions, engine, partial(measure_embedded, count=count))
        tables.append((model, run))
    if not json_only:
        for title, figures in tables:
            Console(width=PIPE_WIDTH).print(table(figures, title))
    for _, figures in tables:
        for figure in figures:
            print(figure.line())


if __name__ == "__main__":
    main()

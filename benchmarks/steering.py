"""What steering does to the embedded model, domain by domain: `python -m benchmarks.steering`.

Requests carry the tag of their domain, and a routing profile says what the tag does: fewer or more experts a token,
experts banned that carry least (or most) of the domain's routing weight, a bias towards those that it prefers. Scores
are of greedy answers to prompts kept out of training (of prose: the share of the tokens of texts of a new seed that
are the likeliest), in bfloat16; they do not depend on the machine's pace. Times of decoding are taken in turns with the
model's own routes; a ratio is the median of the turns' own ratios.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np

from benchmarks.quality import addition_score, answers_of, chat, held_out_text, json_scores, routed
from benchmarks.steering_report import OWN, SHARES, draw, markdown, preferences, put, shares_of
from moesaic import LLM, SamplingParams
from moesaic.adapt.pruning import least, prune, pruning_profile
from moesaic.engine.args import EMBEDDED_MODEL
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.experts.profile_file import RouteProfile
from tools.train_embedded import arithmetic, prose, structured
from tools.train_embedded.tokenizer import END

MAKERS = {"arithmetic": arithmetic.chat_pair, "json": structured.chat_pair, "prose": prose.chat_pair}
DOMAINS = tuple(MAKERS)
BIASES = (0.5, 1.0, 2.0)
MOST_BIAS = 3.0
SPEED_CASES = (OWN, "top-k 1", "top-k 4", "without 50% by domain", "without 87.5% by domain")
BATCHES = (1, 16)
SPEED_TOKENS = 48
SUM_TOKENS = 7
Rules = list[dict[str, Any]]
Score = Callable[[LLM, Any], float]


@dataclass(frozen=True)
class Task:
    """What is scored of a domain; `score` takes the model and the routing of its requests."""

    domain: str
    name: str
    score: Score


def tasks(count: int) -> list[Task]:
    """All of them, on `count` prompts each."""
    return [
        Task("arithmetic", "additions", lambda llm, r: addition_score(llm, count, _what_is, r)),
        Task("arithmetic", "three-digit additions", lambda llm, r: _three_digits(llm, count, r)),
        Task("json", "JSON, keys as asked", lambda llm, r: json_scores(llm, count, r)[1]),
        Task("prose", "prose, likeliest tokens", lambda llm, r: _likeliest(llm, count, r)),
    ]


def _what_is(a: int, b: int) -> str:
    return chat(f"What is {a} + {b}?")


def _three_digits(llm: LLM, count: int, routing: Any) -> float:
    """The share of random sums of three digits, which training had few of, that are exact."""
    rng = Random("steering three digits")
    pairs = [(rng.randint(100, 999), rng.randint(100, 999)) for _ in range(count)]
    made = answers_of(llm, [_what_is(a, b) for a, b in pairs], SUM_TOKENS, routing)
    return sum(ended and text.strip() == str(a + b) for (a, b), (text, ended) in zip(pairs, made, strict=True)) / count


def _likeliest(llm: LLM, count: int, routing: Any) -> float:
    """The share of the tokens of answers in prose that the model finds the likeliest, each given those before it."""
    whole, lengths = _encoded(llm, "prose", count)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, routing=routing)
    hits: list[bool] = []
    for output, ids, length in zip(llm.generate(whole, params, use_tqdm=False), whole, lengths, strict=True):
        assert output.prompt_logprobs is not None
        rows = zip(ids[-length:], output.prompt_logprobs[-length:], strict=True)
        hits += [row[token].rank == 1 for token, row in rows if row is not None]
    return sum(hits) / len(hits)


def _encoded(llm: LLM, domain: str, count: int) -> tuple[list[list[int]], list[int]]:
    """Prompt and answer of each held-out text of a domain as tokens, and how many of them are the answer's."""
    assert llm.tokenizer is not None
    texts = [text for text in held_out_text(count) if text.domain == domain]
    pairs = [[llm.tokenizer.encode(t, add_special_tokens=False) for t in (text.prompt, text.answer)] for text in texts]
    return [prompt + answer for prompt, answer in pairs], [len(answer) for _, answer in pairs]


def record(llm: LLM, count: int) -> RouteProfile:
    """Routing weights of the model's own routes over `count` conversations of each domain, drawn as training draws
    them: prompts that are scored are not among them."""
    assert llm.tokenizer is not None
    shape = llm.llm_engine.engine.info.moe
    assert shape is not None
    experts = max(layer.num_experts for layer in shape.layers)
    weights = np.zeros((1 + len(DOMAINS), len(shape.layers), experts))
    counts = np.zeros(weights.shape, np.int64)
    tokens = []
    for row, domain in enumerate(DOMAINS, 1):
        pairs = [MAKERS[domain](Random(f"steering {domain} {i}")) for i in range(count)]
        texts = [chat(question) + answer + END for question, answer in pairs]
        whole = [llm.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        tokens.append(sum(map(len, whole)))
        with routed(llm, None) as kept:
            llm.generate(whole, SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0), use_tqdm=False)
        for layer, calls in kept.items():
            for routing in calls:
                ids, given = routing.ids.flatten().numpy(), routing.weights.flatten().double().numpy()
                np.add.at(counts[row, layer], ids, 1)
                np.add.at(weights[row, layer], ids, given)
    counts[0], weights[0] = counts[1:].sum(0), weights[1:].sum(0)
    return RouteProfile(
        model=EMBEDDED_MODEL,
        layers=[layer.index for layer in shape.layers],
        num_experts=[layer.num_experts for layer in shape.layers],
        top_k=[layer.top_k for layer in shape.layers],
        tags=list(DOMAINS),
        tokens=sum(tokens),
        tokens_of_tags=tokens,
        tags_left_out=False,
        counts=counts,
        weights=weights,
        pairs=np.zeros((len(shape.layers), experts * (experts - 1) // 2), np.int32),
    )


# ---------------------------------------------------------------- settings


def settings(routes: RouteProfile) -> dict[str, Rules]:
    """Name -> the rules of a routing profile."""
    made: dict[str, Rules] = {OWN: []}
    made |= {f"top-k {k}": [{"top_k": k}] for k in (1, 3, 4)}
    made |= {f"without {100 * share:g}% by domain": _pruned(routes, share, DOMAINS) for share in SHARES}
    made |= {f"without {100 * share:g}% by all domains": _pruned(routes, share, ()) for share in SHARES}
    made["without the 25% that carry most"] = _without_most(routes, 0.25)
    made |= {f"bias to its own, {strength:g}": _biased(routes, strength) for strength in BIASES}
    return made


def _pruned(routes: RouteProfile, share: float, tags: Sequence[str]) -> Rules:
    rules: Rules = pruning_profile("any", "", prune(routes, share, tags)).plain()["rules"]
    return rules


def _without_most(routes: RouteProfile, share: float) -> Rules:
    rules: Rules = []
    for domain in DOMAINS:
        for layer, weights in zip(routes.layers, routes.of(domain)[1], strict=True):
            rules.append({"tags": [domain], "layers": [layer], "ban": least(-weights, int(share * len(weights)))})
    return rules


def _biased(routes: RouteProfile, strength: float) -> Rules:
    """Towards what a domain uses more than the others: strength times the logarithm of its share over the mean one."""
    shares = shares_of(routes) + 1e-4
    bias = np.clip(np.log(shares / shares.mean(0)), -MOST_BIAS, MOST_BIAS) * strength
    return [
        {"tags": [domain], "layers": [layer], "bias": [round(b, 3) for b in bias[d, i].tolist()]}
        for d, domain in enumerate(DOMAINS)
        for i, layer in enumerate(routes.layers)
    ]


def load(llm: LLM, name: str, rules: Rules) -> str:
    """Give the model a profile; returns its name."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return llm.load_routing_profile({"name": slug, "description": name, "rules": rules})


# ---------------------------------------------------------------- figures


def score_figures(llm: LLM, routes: RouteProfile, count: int) -> Iterator[Figure]:
    """Every setting's scores; the baselines are those of the model's own routes."""
    own: dict[str, float] = {}
    for name, rules in settings(routes).items():
        profile = load(llm, name, rules)
        for task in tasks(count):
            value = task.score(llm, {"tags": [task.domain], "profile": profile})
            baseline = own.get(task.name)
            own.setdefault(task.name, value)
            yield Figure(
                bench="steering", case=name, metric=task.name, unit="share", samples=[value], baseline=baseline
            )


def cross_figures(llm: LLM, routes: RouteProfile, count: int, share: float = 0.5) -> Iterator[Figure]:
    """Half of the experts banned by the weights of one domain, the scores of each."""
    profile = load(llm, "cross", _pruned(routes, share, DOMAINS))
    for tag in DOMAINS:
        for task in tasks(count):
            value = task.score(llm, {"tags": [tag], "profile": profile})
            case = f"without {100 * share:g}% by {tag}"
            yield Figure(bench="steering", case=case, metric=task.name, unit="share", samples=[value])


def speed_figures(llm: LLM, routes: RouteProfile, runs: int) -> Iterator[Figure]:
    """Milliseconds of a decode step of prose, in turns with the model's own routes."""
    known = settings(routes)
    profiles = {name: load(llm, name, known[name]) for name in SPEED_CASES}
    whole, _ = _encoded(llm, "prose", max(BATCHES))
    for batch in BATCHES:
        prompts = [ids[:8] for ids in whole[:batch]]
        taken: dict[str, list[float]] = {name: [] for name in profiles}
        for run in range(runs + 1):
            for name, profile in profiles.items():
                milliseconds = _decode(llm, prompts, {"tags": ["prose"], "profile": profile})
                if run:  # the first warms up
                    taken[name].append(milliseconds)
        for name, samples in taken.items():
            baselines = None if name == OWN else taken[OWN]
            yield Figure(
                bench="steering",
                case=name,
                metric=f"decode step, batch {batch}",
                unit="ms",
                samples=samples,
                baselines=baselines,
            )


def _decode(llm: LLM, prompts: list[list[int]], routing: Any) -> float:
    """Mean milliseconds of the steps after the first token."""
    params = SamplingParams(temperature=0.0, max_tokens=SPEED_TOKENS, ignore_eos=True, routing=routing)
    engine = llm.llm_engine
    for i, prompt in enumerate(prompts):
        engine.add_request(f"speed-{i}", prompt, params)
    engine.step()
    start, steps = time.perf_counter(), 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
    return (time.perf_counter() - start) / steps * 1000


@click.command()
@click.option("--count", type=click.IntRange(min=8), default=400, show_default=True, help="prompts of each score")
@click.option("--runs", type=click.IntRange(min=0), default=9, show_default=True, help="turns of the times; 0 for none")
@click.option("--threads", type=int)
@click.option("--page", type=click.Path(exists=True, path_type=Path), help="a page with marks, to put the tables into")
@click.option("--plot", type=click.Path(path_type=Path), help="a PNG to draw")
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(count: int, runs: int, threads: int | None, page: Path | None, plot: Path | None, json_only: bool) -> None:
    """Score and time the embedded model under routing profiles."""
    llm = LLM(EMBEDDED_MODEL, threads=threads, kv_cache_memory="256MiB", dtype="bfloat16")
    routes = record(llm, count)
    scores, cross = list(score_figures(llm, routes, count)), list(cross_figures(llm, routes, count))
    times = list(speed_figures(llm, routes, runs)) if runs else []
    for title, figures in (("scores", scores), ("scores, other domains' tags", cross), ("times", times)):
        if figures:
            report(figures, f"{EMBEDDED_MODEL}: {title}", json_only)
    if page is not None:
        put(page, "preferences", preferences(routes))
        for name, figures in (("scores", scores), ("cross", cross), ("times", times)):
            if figures:
                put(page, name, markdown(figures))
    if plot is not None:
        draw([*scores, *times], plot)


if __name__ == "__main__":
    main()

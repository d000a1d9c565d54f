"""Figures that are commonly claimed for serving MoE models, tested here: `python -m benchmarks.claims`.

What each claim would mean, and what came out, stands in docs/claims.md. Routes are those of the embedded model on text
that its training never saw, or drawn at random where a claim is of a shape; times are of interleaved runs.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import held_out_text, routed
from moesaic import LLM, SamplingParams
from moesaic.core.formats import WeightFormat
from moesaic.engine.args import EMBEDDED_MODEL
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.workload import random_prompts
from moesaic.kernels.cpu.matmul import PackedExperts, fused_moe
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.kernels.reference_router import route

BENCH = "claims"
Key = TypeVar("Key", bound=Hashable)
EXPERTS, TOP_K, GROUPS, TOP_GROUPS = 256, 8, 8, 4  # DeepSeek-V3's router
TOKENS = 4096
SKEWS = {"even": 0.0, "uneven": 1.0}  # standard deviation of what experts' logits have in common, to tokens' own
HIDDEN, INTERMEDIATE, BLOCK_EXPERTS, BLOCK_TOKENS = 1024, 384, 64, 2048  # a layer of qwen3-moe-mini
BLOCK_SIZES = (16, 64, 128, 512, 1024)
BATCHES = (1, 8, 32)
STEPS = (1, 2, 4, 8, 11, 16, 32)  # sequences that decode


def _figure(case: str, metric: str, unit: str, samples: Sequence[float], baseline: float | None = None) -> Figure:
    return Figure(bench=BENCH, case=case, metric=metric, unit=unit, samples=samples, baseline=baseline)


# ---------------------------------------------------------------- load deviation by grouped top-k


def grouped(seed: int = 0) -> Iterator[Figure]:
    """Load of experts and of groups (a group lies on a device) by random logits: plain top-k as the baseline, the best
    groups first (DeepSeek-V3, arXiv:2412.19437), as many from every group (Pangu Pro MoE, arXiv:2505.21411)."""
    choices: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": lambda logits: _routed(logits, 1, 1),
        f"best {TOP_GROUPS} of {GROUPS} groups": lambda logits: _routed(logits, GROUPS, TOP_GROUPS),
        f"{TOP_K // GROUPS} of each of {GROUPS} groups": _of_each_group,
    }
    for router, skew in SKEWS.items():
        draws = [_logits(seed + draw, skew) for draw in range(5)]
        loads = {name: [_loads(choose(logits)) for logits in draws] for name, choose in choices.items()}
        for name in list(choices)[1:]:
            for index, metric in enumerate(("deviation of experts", "deviation of devices", "devices of a token")):
                samples, plain = ([draw[index] for draw in loads[which]] for which in (name, "plain"))
                case = f"{router} router, {name}"
                yield Figure(bench=BENCH, case=case, metric=metric, unit="", samples=samples, baselines=plain)


def _logits(seed: int, skew: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    own, common = (torch.randn(shape, generator=generator) for shape in ((TOKENS, EXPERTS), (1, EXPERTS)))
    return own + skew * common


def _routed(logits: Tensor, groups: int, top_groups: int) -> Tensor:
    bias = torch.zeros(EXPERTS)
    return route(logits, TOP_K, "sigmoid", num_groups=groups, top_groups=top_groups, bias=bias)[0].long()


def _of_each_group(logits: Tensor) -> Tensor:
    best = logits.unflatten(1, (GROUPS, -1)).topk(TOP_K // GROUPS).indices
    return (best + torch.arange(GROUPS)[:, None] * (EXPERTS // GROUPS)).flatten(1)


def _loads(ids: Tensor) -> list[float]:
    """Standard deviation over mean of the tokens of each expert, the same of each group, and groups a token goes to."""
    experts = torch.bincount(ids.flatten(), minlength=EXPERTS).double()
    devices = experts.reshape(GROUPS, -1).sum(1)
    reached = torch.zeros(len(ids), GROUPS).scatter_(1, ids // (EXPERTS // GROUPS), 1.0).sum(1)
    return [float(loads.std(correction=0) / loads.mean()) for loads in (experts, devices)] + [float(reached.mean())]


# ---------------------------------------------------------------- what routes of a real model give


def routes_of(llm: LLM, count: int) -> list[list[np.ndarray]]:
    """By layer the choices `[T, k]` of each held-out text."""
    assert llm.tokenizer is not None
    texts = [llm.tokenizer.encode(t.prompt + t.answer, add_special_tokens=False) for t in held_out_text(count)]
    with routed(llm, None) as kept:
        for text in texts:
            llm.generate([text], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True), use_tqdm=False)
    return [
        [routing.ids[: len(text)].numpy() for routing, text in zip(calls, texts, strict=True)]
        for calls in kept.values()
    ]


def utilization(routes: list[list[np.ndarray]], num_experts: int) -> Iterator[Figure]:
    """Share of a layer's experts that a decode step of so many sequences reaches, tokens drawn from all texts; against
    that of a router that draws its experts."""
    draw = np.random.default_rng(0)
    layers = [np.concatenate(layer) for layer in routes]
    top_k = layers[0].shape[1]
    for batch in STEPS:
        reached = [len(np.unique(layer[draw.integers(len(layer), size=batch)])) for layer in layers for _ in range(200)]
        drawn = 1 - (1 - top_k / num_experts) ** batch
        mean = float(np.mean(reached)) / num_experts
        yield _figure(f"embedded model, decoding batch={batch}", "experts reached", "share", [mean], drawn)


def hit_rates(routes: list[list[np.ndarray]], num_experts: int) -> Iterator[Figure]:
    """Hits of a cache of half of each layer's experts, on the second half of the texts: against a fixed choice."""
    size, middle = num_experts // 2, len(routes[0]) // 2
    places: dict[str, Callable[[list[np.ndarray], int], np.ndarray]] = {
        "used last": last_used,
        "used most": partial(most_used, decay=1.0),
        "used most, halving in 64 tokens": partial(most_used, decay=0.5 ** (1 / 64)),
    }
    for name, place in places.items():
        seen, new = (
            [place(layer[part], num_experts) for layer in routes] for part in (slice(middle), slice(middle, None))
        )
        equal = [float(rates[size]) for rates in new]
        yield _figure(f"expert cache of {size} of {num_experts}", name, "share", equal, size / num_experts)
        sizes = by_hits(seen, size * len(routes))
        shared = [float(rates[slots]) for rates, slots in zip(new, sizes, strict=True)]
        case = f"expert cache of {size} of {num_experts} on average, slots given to layers by hits"
        yield _figure(case, name, "share", [float(np.mean(shared))], float(np.mean(equal)))


def last_used(texts: list[np.ndarray], num_experts: int) -> np.ndarray:
    """Hit rates by size, 0 to E, of a cache of the experts used last."""
    order = list(range(num_experts))  # the newest first
    ranks = np.zeros(num_experts + 1)
    for expert in (int(expert) for text in texts for expert in text.flatten()):
        rank = order.index(expert)
        ranks[rank + 1 :] += 1
        order.insert(0, order.pop(rank))
    return ranks / ranks[-1]


def most_used(texts: list[np.ndarray], num_experts: int, decay: float) -> np.ndarray:
    """The same of a cache of the experts used most, where a use counts `decay` as much with every token."""
    uses, ranks = np.zeros(num_experts), np.zeros(num_experts + 1)
    for token in (token for text in texts for token in text):
        rank_of = np.empty(num_experts, dtype=int)
        rank_of[np.argsort(-uses, kind="stable")] = np.arange(num_experts)
        for rank in rank_of[token]:
            ranks[rank + 1 :] += 1
        uses *= decay
        uses[token] += 1
    return ranks / ranks[-1]


def by_hits(rates: list[np.ndarray], slots: int) -> list[int]:
    """Slots of each layer: one after another goes where it brings the most hits."""
    sizes = [1] * len(rates)
    for _ in range(slots - len(rates)):
        gains = [
            rate[size + 1] - rate[size] if size + 1 < len(rate) else -1.0
            for rate, size in zip(rates, sizes, strict=True)
        ]
        sizes[int(np.argmax(gains))] += 1
    return sizes


# ---------------------------------------------------------------- memory


def paged_memory(count: int, seed: int = 0) -> Iterator[Figure]:
    """Places of KV that a batch holds at its end in pages, against its full length reserved for every sequence."""
    lengths = np.random.default_rng(seed).lognormal(mean=6.0, sigma=0.8, size=count).clip(16, 4096).astype(int)
    for block in (8, 16, 32, 128):
        paged = float((-(-lengths // block) * block).sum())
        case = f"KV of {count} sequences of {int(np.median(lengths))} tokens (median), 4096 at most, block={block}"
        yield _figure(case, "places held", "", [paged], float(4096 * count))
        yield _figure(case, "empty places", "share", [1 - lengths.sum() / paged])


def expert_bytes() -> Iterator[Figure]:
    """Bytes of one expert of qwen3-moe-mini as kernels keep it."""
    plain = _layer(WeightFormat("bf16"), 1)[1]
    for format in (WeightFormat("w8", 128), WeightFormat("w4", 128, True), WeightFormat("w4", 32, True)):
        yield _figure(f"expert in {format}", "bytes", "B", [float(_layer(format, 1)[1])], float(plain))


# ---------------------------------------------------------------- time


def block_sizes(runs: int) -> Iterator[Figure]:
    """A layer of experts with the most rows of a block set, against the kernel's own choice, in turns."""
    layer, _ = _layer(WeightFormat("bf16"), BLOCK_EXPERTS)
    ids = _choices(BLOCK_TOKENS, torch.zeros(BLOCK_EXPERTS))
    calls = {size: partial(_call(layer, ids), block_size=size) for size in (0, *BLOCK_SIZES)}
    samples = _in_turns(calls, runs)
    for size in BLOCK_SIZES:
        case = f"experts bf16 T={BLOCK_TOKENS} block={size}"
        yield Figure(bench=BENCH, case=case, metric="call", unit="ms", samples=samples[size], baselines=samples[0])


def uneven_loads(runs: int) -> Iterator[Figure]:
    """A layer of experts whose choices are uneven, against even ones, in turns."""
    layer, _ = _layer(WeightFormat("bf16"), BLOCK_EXPERTS)
    common = torch.randn(BLOCK_EXPERTS, generator=torch.Generator().manual_seed(1))
    for tokens in (1, 8, 32, 512):
        chosen = {skew: _choices(tokens, skew * common) for skew in (0.0, 1.0, 2.0)}
        samples = _in_turns({skew: _call(layer, ids) for skew, ids in chosen.items()}, runs)
        for skew in (1.0, 2.0):
            counts = torch.bincount(chosen[skew].flatten().long(), minlength=BLOCK_EXPERTS)
            load = f"busiest {float(counts.max() / counts.float().mean()):.1f} times the mean"
            case = f"experts bf16 T={tokens}, {load}"
            yield Figure(
                bench=BENCH, case=case, metric="call", unit="ms", samples=samples[skew], baselines=samples[0.0]
            )


def _choices(tokens: int, common: Tensor) -> Tensor:
    """Ids `[T, k]` of tokens whose logits have something in common, `[E]`."""
    logits = torch.randn(tokens, len(common), generator=torch.Generator().manual_seed(tokens))
    return (logits + common).topk(TOP_K).indices.int()


def _call(layer: PackedExperts, ids: Tensor) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(ids), HIDDEN, generator=generator)
    return partial(fused_moe, hidden, ids, torch.rand(ids.shape, generator=generator), layer)


def _in_turns(calls: Mapping[Key, Callable[[], object]], runs: int) -> dict[Key, list[float]]:
    """Milliseconds of each call; a run of all of them first warms up."""
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    for run in range(runs + 1):
        for key, call in calls.items():
            start = perf_counter()
            call()
            if run:
                samples[key].append((perf_counter() - start) * 1e3)
    return samples


def _layer(format: WeightFormat, num_experts: int) -> tuple[PackedExperts, int]:
    """A layer of random experts, and the bytes of one."""
    table = torch.arange(num_experts, dtype=torch.int32)
    gate_up = [_matrix(2 * INTERMEDIATE, HIDDEN, format, True) for _ in range(num_experts)]
    down = [_matrix(HIDDEN, INTERMEDIATE, format, False) for _ in range(num_experts)]
    return PackedExperts(table, gate_up, down), gate_up[0].nbytes + down[0].nbytes


def _matrix(rows: int, cols: int, format: WeightFormat, gated: bool) -> PackedMatrix:
    return PackedMatrix.of(torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)), format, gated)


def batching(llm: LLM, name: str, runs: int) -> Iterator[Figure]:
    """Generated tokens a second of many sequences at once, against the same ones after each other, in turns."""
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    vocabulary = llm.llm_engine.engine.info.vocab_size
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for run in range(runs + 1):
        for batch, samples in rates.items():
            prompts = random_prompts([16] * max(BATCHES), vocabulary, seed=run)
            start = perf_counter()
            for first in range(0, max(BATCHES), batch):
                llm.generate(prompts[first : first + batch], params, use_tqdm=False)
            if run:
                samples.append(max(BATCHES) * params.max_tokens / (perf_counter() - start))  # type: ignore[operator]
    for batch in BATCHES[1:]:
        case = f"{name} batch={batch}"
        yield Figure(
            bench=BENCH, case=case, metric="generated", unit="tokens/s", samples=rates[batch], baselines=rates[1]
        )


CLAIMS = ("grouped", "utilization", "caches", "memory", "blocks", "imbalance", "batching")


@click.command()
@click.option("--claim", "claims", type=click.Choice(CLAIMS), multiple=True, default=CLAIMS, help="repeatable")
@click.option("--model", default=EMBEDDED_MODEL, show_default=True, help="for batching")
@click.option("--count", type=click.IntRange(min=2), default=60, show_default=True, help="texts of each domain")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="of what is timed")
@click.option("--json-only", is_flag=True, help="print no table, only the JSON lines")
def main(claims: tuple[str, ...], model: str, count: int, runs: int, json_only: bool) -> None:
    """Test claims of MoE serving."""
    figures: list[Figure] = []
    if "grouped" in claims:
        figures += grouped()
    if {"utilization", "caches"} & set(claims):
        llm = LLM(EMBEDDED_MODEL, kv_cache_memory="64MiB", enable_prefix_caching=False, enforce_eager=True)
        routes, num_experts = routes_of(llm, count), 16
        if "utilization" in claims:
            figures += utilization(routes, num_experts)
        if "caches" in claims:
            figures += hit_rates(routes, num_experts)
    if "memory" in claims:
        figures += [*paged_memory(256), *expert_bytes()]
    if "blocks" in claims:
        figures += block_sizes(runs)
    if "imbalance" in claims:
        figures += uneven_loads(runs)
    if "batching" in claims:
        figures += batching(LLM(model, skip_tokenizer_init=True, kv_cache_memory="256MiB"), model, runs)
    report(figures, "claims", json_only)


if __name__ == "__main__":
    main()

"""The bars that the CPU backend is held to, judged from the JSON lines of a run. Torch-free."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]  # a figure, as benchmarks print it
FLOOR_OF_BATCH = {1: 0.93, 8: 0.87, 32: 0.87}  # shares of the floor that meet a bar against peers by themselves
FLOOR_OF_PREFILL = 0.85
KERNEL_FORMATS = {  # as `moesaic bench kernels` says them
    "bf16": "bf16",
    "w8a16": "w8 in groups of 128",
    "w4a16": "w4 in groups of 128 with offsets",
    "w8a8": "w8a8 in groups of 128",
}


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        group: the heading that it stands under.
        name: what is measured.
        bench, case, metric: which figures: the whole bench, a pattern that the case contains, the whole metric.
        least, most: the bound of the figure; one of them.
        field: of the figure: its value, or its ratio to its baseline.
        share: reaching this share of the floor, in the same case, meets the bar too.
        scale: what a figure is multiplied with before it is compared.
    """

    group: str
    name: str
    bench: str
    case: str
    metric: str
    least: float | None = None
    most: float | None = None
    field: str = "value"
    share: float | None = None
    scale: float = 1.0

    @property
    def wanted(self) -> str:
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return bound if self.share is None else f"{bound}, or {self.share:.0%} of the floor"


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured; `met` is None where nothing was."""

    bar: Bar
    measured: str
    met: bool | None


def judge(bar: Bar, lines: Sequence[Line]) -> Verdict:
    """Hold the figures against one bar: the worst of them counts (against peers, the best peer's)."""
    pattern = re.compile(bar.case)
    found = [
        (line[bar.field] * bar.scale, line)
        for line in lines
        if line["bench"] == bar.bench
        and line["metric"] == bar.metric
        and pattern.search(line["case"])
        and line[bar.field] is not None
    ]
    if not found:
        return Verdict(bar, "", None)
    if bar.least is not None:
        value, line = min(found, key=lambda pair: pair[0])
        met = value >= bar.least
    else:
        assert bar.most is not None
        value, line = max(found, key=lambda pair: pair[0])
        met = value <= bar.most
    measured = f"{value:.3g}"
    case, versus, peer = line["case"].partition(" vs ")
    if versus:
        measured += f" ({peer})"
    if bar.share is not None:
        share = next((other["value"] for other in lines if other["case"] == case and other["metric"] == "share"), None)
        if share is not None:
            measured += f", {share:.0%} of the floor"
            met = met or share >= bar.share
    return Verdict(bar, measured, met)


def read_lines(text: Iterable[str]) -> Iterator[Line]:
    """The figures among lines of text; of a figure that was measured twice, both."""
    for line in text:
        if line.startswith('{"bench"'):
            yield json.loads(line)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A table for docs/performance.md, with its groups as rows of their own."""
    rows = ["| what | bar | measured | |", "|---|---|---|---|"]
    group = ""
    for verdict in verdicts:
        if verdict.bar.group != group:
            group = verdict.bar.group
            rows.append(f"| **{group}** | | | |")
        said = {True: "met", False: "**missed**", None: "not measured"}[verdict.met]
        rows.append(f"| {verdict.bar.name} | {verdict.bar.wanted} | {verdict.measured} | {said} |")
    return "\n".join(rows)


def _kernels() -> Iterator[Bar]:
    group = "kernels (share of the longer floor: the stream's, or the product's)"

    def bar(kind: str, tokens: int, least: float) -> Bar:
        name = f"experts, {kind}, {tokens} token{'s' * (tokens > 1)}"
        return Bar(group, name, "kernels", rf" experts {KERNEL_FORMATS[kind]} T={tokens}$", "share", least=least)

    for tokens in (1, 16):
        for kind, least in (("bf16", 0.95), ("w8a16", 0.93), ("w4a16", 0.90)):
            yield bar(kind, tokens, least)
    for kind, least in (("bf16", 0.92), ("w8a16", 0.85), ("w4a16", 0.90), ("w8a8", 0.70)):
        yield bar(kind, 512, least)
    name = "attention, decode, bf16, context 2048, batch 16"
    yield Bar(group, name, "attention", r"^decode bf16\b.*batch=16 context=2048$", "share", least=0.85)


def _models() -> Iterator[Bar]:
    for model in ("qwen3-moe-mini", "granite-1b-a400m", "olmoe-1b-7b"):
        for kind, least in (("bfloat16", 0.90), ("w8a16", 0.88), ("w4a16", 0.85)):
            name = f"{model}, {kind}, batch 1, share of the floor"
            yield Bar("whole model", name, "latency", rf"^{model} {kind} batch=1 ", "decode_share", least=least)


def _peers() -> Iterator[Bar]:
    group = "against the best peer at the same bits (qwen3-moe-mini)"

    def bar(kind: str, name: str, case: str, metric: str, least: float, share: float) -> Bar:
        pattern = rf"^qwen3-moe-mini {kind} .*{case}.* vs "
        return Bar(group, f"{kind}, {name}", "peers", pattern, metric, least=least, field="ratio", share=share)

    for kind in ("bfloat16", "w8a16", "w4a16"):
        yield bar(kind, "batch 1", r"decode batch=1 ", "decode_tokens", 1.10, FLOOR_OF_BATCH[1])
    for kind, least in (("bfloat16", 1.2), ("w8a16", 1.5), ("w4a16", 2.5)):
        for batch in (8, 32):
            yield bar(kind, f"batch {batch}", rf"decode batch={batch} ", "decode_tokens", least, FLOOR_OF_BATCH[batch])
    for kind, least in (("bfloat16", 1.1), ("w8a8", 1.1), ("w4a16", 2.0)):
        for shape in ("1x1024", "8x512"):
            yield bar(kind, f"prefill {shape}", rf"prefill {shape}\b", "prefill_tokens", least, FLOOR_OF_PREFILL)


def _rest() -> Iterator[Bar]:
    group = "start and memory"
    yield Bar(group, "peak over weights, KV and an idle torch", "start", "", "peak", most=1.15, field="ratio")
    for way, name, most in (
        ("cached", "packed weights in the page cache, s per GB beyond imports and 1 s", 0.2),
        ("from disk", "packed weights on disk, s per GB beyond imports and 1 s", 0.45),
        ("first", "first time, s per GB of the checkpoint beyond imports and 1 s", 5.0),
    ):
        yield Bar(group, name, "start", rf" w[48]a\d+ {way}$", "seconds_per_gb", most=most)
    group = "the engine around the kernels"
    yield Bar(group, "speed beside a busy process on one core", "neighbour", "", "disturbed", least=0.4, field="ratio")
    name, case = "overhead outside kernels, qwen3-moe-mini, batch 1", r"^qwen3-moe-mini {} batch=1 greedy$"
    outside = "outside_kernels"
    yield Bar(
        group, f"{name}, bfloat16, of a step", "overhead", case.format("bfloat16"), outside, most=0.05, field="ratio"
    )
    yield Bar(group, f"{name}, w4a16, ms", "overhead", case.format("w4a16"), outside, most=0.25)
    group = "accuracy"
    for metric in ("logits, error of the median token", "logits, error over all tokens, float32's routing"):
        for name, model in (("the embedded model", "moe-model"), ("random models with outliers", "random .*")):
            yield Bar(group, f"w8a16, {name}, {metric}", "quality", rf"^{model} w8a16$", metric, most=0.01)
    for metric in ("additions, chat", "additions, bare", "JSON parses", "JSON has the keys"):
        for kind, most in (("w8a16", 0.5), ("w4a16", 2.0)):
            yield Bar(
                group, f"{kind}, {metric}, points lost", "quality", rf"{kind}$", f"lost: {metric}", most=most, scale=100
            )


BARS: tuple[Bar, ...] = (*_kernels(), *_models(), *_peers(), *_rest())

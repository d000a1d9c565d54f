"""Stages 1 to 3: the engine's model against what a reference left behind."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moesaic.adapt.proof.captured import (
    FLIPS,
    Probe,
    Prompt,
    by_token,
    difference,
    other_choices,
)
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.results import OPS, Comparison, Stage
from moesaic.models.spec import ModelSpec, MoESpec

ALL_EXPERTS = 2048  # experts of a model up to which stage 1 tries every one
SAMPLED = 16  # of a layer, in larger models
ROWS = 3  # tokens that an expert is tried with


def lone_probes(spec: ModelSpec) -> list[Probe]:
    """Stage 1's: one expert a token, with weight 1."""
    moes = moes_of(spec)
    every = sum(moe.num_experts for moe in moes) <= ALL_EXPERTS
    probes = []
    for i, moe in enumerate(moes):
        generator = torch.Generator().manual_seed(i)
        experts = torch.arange(moe.num_experts)
        if not every:
            experts = torch.randperm(moe.num_experts, generator=generator)[:SAMPLED].sort().values
        ids = experts.repeat_interleave(ROWS)[:, None]
        hidden = torch.randn(len(ids), moe.width(spec.hidden_size), generator=generator)
        probes.append(Probe(i, hidden, ids, torch.ones(len(ids), 1)))
    return probes


def fixed_probes(spec: ModelSpec) -> list[Probe]:
    """Stage 2's: token t goes to experts t, t + 1, ... (modulo their number), with falling weights."""
    probes = []
    for i, moe in enumerate(moes_of(spec)):
        k = min(moe.router.top_k, moe.num_experts)
        tokens = torch.arange(min(max(moe.num_experts, 8), 64))
        ids = (tokens[:, None] + torch.arange(k)) % moe.num_experts
        weights = torch.arange(k, 0, -1).float().expand(len(tokens), k)
        hidden = torch.randn(
            len(tokens), moe.width(spec.hidden_size), generator=torch.Generator().manual_seed(1000 + i)
        )
        probes.append(Probe(i, hidden, ids, (weights / weights.sum(-1, keepdim=True)).contiguous()))
    return probes


def moes_of(spec: ModelSpec) -> list[MoESpec]:
    """The experts of all layers that have some, in order."""
    return [layer.moe for layer in spec.layers if layer.moe is not None]


def one_expert(engine: OurModel, probes: Sequence[Probe], reference: str, tolerance: float) -> Stage:
    """Stage 1: every expert by itself."""
    comparisons = []
    for probe in probes:
        if probe.output is None:
            continue
        ours, layer = engine.apply(probe), engine.layer_of_moe[probe.moe]
        for e in probe.ids.unique().tolist():
            rows = probe.ids[:, 0] == e
            comparisons.append(
                Comparison("expert", layer, difference(ours[rows], probe.output[rows]), tolerance, expert=e)
            )
    tried = f"{len(comparisons)} experts in {len({c.layer for c in comparisons})} layers"
    return _stage(1, comparisons, reference, tried, skipped=_why_skipped(probes))


def fixed_routes(engine: OurModel, probes: Sequence[Probe], reference: str, tolerance: float) -> Stage:
    """Stage 2: many experts for each token, as nobody's router chose them."""
    comparisons = []
    for probe in probes:
        if probe.output is None:
            continue
        ours = engine.apply(probe)
        wrong = ~(by_token(ours, probe.output) <= tolerance)
        layer, far = engine.layer_of_moe[probe.moe], difference(ours, probe.output)
        comparisons.append(Comparison("experts", layer, far, tolerance, wrong=int(wrong.sum()), tokens=len(wrong)))
    tried = f"{len(comparisons)} layers, {len(probes[0].hidden) if probes else 0} tokens each"
    return _stage(2, comparisons, reference, tried, skipped=_why_skipped(probes))


def _why_skipped(probes: Sequence[Probe]) -> str:
    if not probes:
        return "the model has no feed-forward experts"
    return "this architecture's experts cannot be called alone in the reference: stage 3 compares the whole block"


def layer_by_layer(engine: OurModel, prompts: Sequence[Prompt], reference: str, dtype: str, tolerance: float) -> Stage:
    """Stage 3: each layer is given what the reference's layer was given."""
    comparisons: dict[tuple[int | None, str], Comparison] = {}

    def note(found: Comparison) -> None:
        """The largest difference of all prompts, and the tokens of all."""
        key = found.layer, found.op
        held = comparisons.setdefault(key, found)
        if held is not found:
            worse = found if not found.difference <= held.difference else held
            comparisons[key] = replace(worse, wrong=held.wrong + found.wrong, tokens=held.tokens + found.tokens)

    for prompt in (p for p in prompts if p.inputs):
        note(Comparison("embedding", None, difference(engine.embed(prompt.tokens), prompt.inputs[0]), tolerance))
        for i, (ours, theirs) in enumerate(zip(engine.follow(prompt.tokens, prompt.inputs), prompt.ops, strict=True)):
            for found in _layer(i * engine.group, prompt.inputs[i], ours, theirs, dtype, tolerance):
                note(found)
        note(Comparison("head", None, difference(engine.head(prompt.inputs[-1]), prompt.logits), tolerance))
    kept = _without_other_layouts(list(comparisons.values()))
    layers = len({c.layer for c in kept if c.layer is not None})
    tokens = sum(len(p.tokens) for p in prompts if p.inputs)
    return _stage(3, kept, reference, f"{layers} layers, {tokens} tokens", skipped="the reference tells of no layer")


def _layer(
    index: int, given: Tensor, ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype: str, tolerance: float
) -> list[Comparison]:
    """All that can be compared of one layer; what it gives decides."""
    comparisons = []
    flipped = None
    if {"chosen experts", "router logits"} <= ours.keys() and "chosen experts" in theirs:
        other = other_choices(ours["chosen experts"], theirs["chosen experts"])
        share = float(other.float().mean())
        near = share <= FLIPS[dtype] and ours["chosen experts"].shape == theirs["chosen experts"].shape
        flipped = other if near else None
        comparisons.append(
            Comparison(
                "chosen experts",
                index,
                share,
                FLIPS[dtype] if near else 0.0,
                counts=False,
                wrong=int(other.sum()),
                tokens=len(other),
            )
        )
    for op in OPS:
        if op == "chosen experts" or op not in ours or op not in theirs:
            continue
        a, b = ours[op], theirs[op]
        if op == "weights" and a.shape != b.shape:  # one counts experts without weights, the other does not
            width = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (a, b))
        if a.shape != b.shape:
            continue
        rows = by_token(a, b, given if op == "layer" else None)
        counted = rows if flipped is None or op in ("attention", "router logits") else rows[~flipped]
        worst = float("nan") if bool(counted.isnan().any()) else float(counted.max()) if len(counted) else 0.0
        comparisons.append(
            Comparison(
                op,
                index,
                worst,
                tolerance,
                counts=op == "layer",
                wrong=int((~(rows <= tolerance)).sum()),
                tokens=len(rows),
            )
        )
    return comparisons


def _without_other_layouts(comparisons: list[Comparison]) -> list[Comparison]:
    """Less what the two models lay out differently: parts that differ in layers which give the same."""
    right = {c.layer for c in comparisons if c.op == "layer" and c.agrees}
    other = {c.op for c in comparisons if c.layer in right and c.op != "layer" and not c.agrees}
    order = {op: i for i, op in enumerate(("embedding", *OPS, "head"))}
    kept = [c for c in comparisons if c.op not in other or c.op in ("layer", "embedding", "head")]
    last = max((c.layer for c in kept if c.layer is not None), default=0)
    return sorted(kept, key=lambda c: (_place(c, last), order[c.op]))


def _place(c: Comparison, last: int) -> int:
    if c.layer is not None:
        return c.layer
    return -1 if c.op == "embedding" else last + 1


def _stage(number: int, comparisons: list[Comparison], reference: str, tried: str, skipped: str) -> Stage:
    counting = [c for c in comparisons if c.counts]
    if not counting:
        return Stage(number, "skipped", reference, skipped)
    wrong = [c for c in counting if not c.agrees]
    if not wrong:
        worst = max(c.difference for c in counting)
        return Stage(number, "passed", reference, f"{tried}; at most {worst:.1g}", (), tuple(comparisons))
    first = suspect(comparisons, wrong[0])
    lines = [say(first)]
    if first != wrong[0]:
        lines.append(f"so {say(wrong[0])}")
    if len(wrong) > 1:
        lines.append(f"{len(wrong)} of {len(counting)} differ: {listed(wrong)}")
    return Stage(
        number, "failed", reference, f"{tried}; differs first at {first.place}", tuple(lines), tuple(comparisons)
    )


def suspect(comparisons: Sequence[Comparison], wrong: Comparison) -> Comparison:
    """Of a layer that differs, the first part that does."""
    if wrong.op != "layer":
        return wrong
    parts = [c for c in comparisons if c.layer == wrong.layer and not c.agrees]
    return parts[0] if parts else wrong


def say(c: Comparison) -> str:
    """A difference in words."""
    if c.op == "chosen experts":
        return f"{c.place}: {c.wrong} of {c.tokens} tokens go to others"
    held = f"; {c.wrong} of {c.tokens} tokens differ" if c.tokens else ""
    return f"{c.place}: differs by {c.difference:.2g} of the largest (tolerance {c.tolerance:.0e}{held})"


def listed(comparisons: Sequence[Comparison], most: int = 6) -> str:
    """Where they are, the first few."""
    places = list(dict.fromkeys(c.place for c in comparisons))
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")

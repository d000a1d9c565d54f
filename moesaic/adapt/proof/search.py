"""Trying what may be wrong, on the plain fp32 model: the likeliest first, until one makes the difference go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter

import torch

from moesaic.adapt.proof import evidence as seen
from moesaic.adapt.proof import spec_hypotheses, weight_hypotheses
from moesaic.adapt.proof.captured import Probe, Prompt, by_token, difference
from moesaic.adapt.proof.evidence import Evidence
from moesaic.adapt.proof.hypotheses import Hypothesis, moes_in
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.results import Cause, Stage

Measure = Callable[[], float]
MOST_PAIRS = 64  # of experts that may have changed places
HELPS = 0.5  # of the difference that may be left if a hypothesis is to be told of
MOST_TOLD = 5


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    causes: tuple[Cause, ...] = ()
    evidence: tuple[str, ...] = ()
    tried: int = 0
    note: str = ""


def search(
    oracle: OurModel,
    stage: Stage,
    probes: Sequence[Probe],
    prompts: Sequence[Prompt],
    tolerance: float,
    seconds: float,
    tick: Callable[[str], None],
) -> Found:
    """The cause of what a stage found, if it is among the hypotheses.

    Args:
        probes: of that stage, 1 or 2.
        seconds: after which the search ends, wherever it is.
    """
    quick, full, evidence = _measures(oracle, stage, probes, prompts, tolerance)
    before, quickly = full(), quick()
    if before <= tolerance:
        what = "plain fp32 arithmetic instead of the engine's kernels"
        advice = "the spec and the weights are right: it is the kernels; --moe-backend reference computes without them"
        worst = stage.worst.difference if stage.worst is not None else float("nan")
        return Found((Cause(what, worst, before, True, advice),), evidence.lines, 1)
    causes: list[Cause] = []
    end, tried = perf_counter() + seconds, 0
    for hypothesis in _ordered(oracle, evidence):
        if perf_counter() > end:
            note = f"the search for causes ended after {seconds:.0f} s and {tried} hypotheses (--search-seconds)"
            return Found(_best(causes), evidence.lines, tried, note)
        if tried % 8 == 0:
            tick(f"trying causes: {hypothesis.what}")
        tried += 1
        cause = _try(oracle, hypothesis, quick, full, quickly, before, tolerance)
        if cause is not None:
            causes.append(cause)
            if cause.certain:
                break
    return Found(_best(causes), evidence.lines, tried)


def _try(
    oracle: OurModel,
    hypothesis: Hypothesis,
    quick: Measure,
    full: Measure,
    quickly: float,
    before: float,
    tolerance: float,
) -> Cause | None:
    """What a hypothesis leaves of the difference; None where it does not help."""
    try:
        with hypothesis.change(oracle.model):
            if not quick() <= max(tolerance, HELPS * quickly):
                return None
            after = full()
    except (RuntimeError, ValueError, IndexError, AttributeError):  # it does not fit this model: no cause then
        return None
    if not after <= max(tolerance, HELPS * before):
        return None
    return Cause(hypothesis.what, before, after, after <= tolerance, hypothesis.advice)


def _best(causes: Sequence[Cause]) -> tuple[Cause, ...]:
    ordered = sorted(causes, key=lambda cause: cause.after)
    certain = [cause for cause in ordered if cause.certain]
    return tuple(certain[:1] or ordered[:MOST_TOLD])


def _ordered(oracle: OurModel, evidence: Evidence) -> Iterator[Hypothesis]:
    """All hypotheses, the likeliest first."""
    model = oracle.model
    general = spec_hypotheses.of_spec(model, evidence.windows)
    of_spec = [h for kind in evidence.kinds for h in general if h.kind == kind]
    others = [h for h in general if h.kind not in evidence.kinds]
    if evidence.experts_first:
        yield from _of_experts(oracle, evidence)
    yield from of_spec
    if moes_in(model):
        yield from weight_hypotheses.of_all_experts(model)
        yield from weight_hypotheses.of_layers(model, range(len(moes_in(model))))
    if not evidence.experts_first:
        yield from _of_experts(oracle, evidence)
    yield from others


def _of_experts(oracle: OurModel, evidence: Evidence) -> Iterator[Hypothesis]:
    """Each of the experts that explain what is seen; first what is commonest, the swap of gate and up."""
    each = [weight_hypotheses.of_expert(oracle.model, m, e) for m, e in evidence.experts]
    for place in range(max(map(len, each), default=0)):
        yield from (found[place] for found in each if place < len(found))
    pairs = [(a[0], a[1], b[1]) for a, b in combinations(evidence.experts, 2) if a[0] == b[0]]
    for m, a, b in pairs[:MOST_PAIRS]:
        yield weight_hypotheses.exchanged(oracle.model, m, a, b)
    if len(evidence.experts) <= 8:
        for m, e in evidence.experts:
            count = moes_in(oracle.model)[m].spec.num_experts
            known = {b for place, a, b in pairs if place == m and a == e}
            yield from (
                weight_hypotheses.exchanged(oracle.model, m, e, b) for b in range(count) if b != e and b not in known
            )


def _measures(
    oracle: OurModel, stage: Stage, probes: Sequence[Probe], prompts: Sequence[Prompt], tolerance: float
) -> tuple[Measure, Measure, Evidence]:
    """How large the difference is: told from few tokens, and from all; and what it says by itself."""
    if stage.number in (1, 2):
        wrong = {c.layer for c in stage.comparisons if c.counts and not c.agrees}
        known = [p for p in probes if p.output is not None]
        first = [p for p in known if oracle.layer_of_moe[p.moe] in wrong][:1]
        return (
            lambda: _of_probes(oracle, first),
            lambda: _of_probes(oracle, known),
            seen.of_lone_experts(oracle, stage),
        )
    if stage.number == 3:
        traced = sorted((p for p in prompts if p.inputs), key=lambda p: len(p.tokens))
        least = [p for p in traced if _of_traces(oracle, [p]) > tolerance][:1]
        return (
            lambda: _of_traces(oracle, least),
            lambda: _of_traces(oracle, traced),
            seen.of_layers(oracle, stage, traced, tolerance),
        )
    short = _shortest(oracle, prompts, tolerance)
    return (
        lambda: _of_logits(oracle, short),
        lambda: _of_logits(oracle, prompts),
        seen.of_logits(oracle, prompts, tolerance),
    )


def _of_probes(oracle: OurModel, probes: Sequence[Probe]) -> float:
    return _most(difference(oracle.apply(p), p.output) for p in probes if p.output is not None)


def _of_traces(oracle: OurModel, prompts: Sequence[Prompt]) -> float:
    """Of what each layer gives for what the reference's was given, and of both ends."""

    def differences(prompt: Prompt) -> Iterator[float]:
        yield difference(oracle.embed(prompt.tokens), prompt.inputs[0])
        made = oracle.follow(prompt.tokens, prompt.inputs)
        for ours, theirs, given in zip(made, prompt.ops, prompt.inputs, strict=False):
            yield float(by_token(ours["layer"], theirs["layer"], given).max())
        yield difference(oracle.head(prompt.inputs[-1]), prompt.logits)

    return _most(d for prompt in prompts for d in differences(prompt))


def _of_logits(oracle: OurModel, prompts: Sequence[Prompt]) -> float:
    return _most(difference(oracle.run(p.tokens, trace=False).logits, p.logits) for p in prompts)


def _shortest(oracle: OurModel, prompts: Sequence[Prompt], tolerance: float) -> list[Prompt]:
    """The few tokens in which a difference shows first."""
    cut = []
    for prompt in prompts:
        wrong = (by_token(oracle.run(prompt.tokens, trace=False).logits, prompt.logits) > tolerance).nonzero()
        if len(wrong):
            end = min(int(wrong[0]) + 4, len(prompt.tokens))
            cut.append(Prompt(prompt.tokens[:end], end, prompt.logits[:end]))
    return sorted(cut, key=lambda prompt: len(prompt.tokens))[:1]


def _most(differences: Iterator[float]) -> float:
    """The largest; NaN counts as infinite."""
    values = torch.tensor([0.0, *differences])
    return float(values.nan_to_num(float("inf")).max())

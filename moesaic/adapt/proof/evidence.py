"""What a difference says of its cause before anything is tried: which tokens it is in, and where those were routed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from moesaic.adapt.proof.captured import Prompt, by_token
from moesaic.adapt.proof.compare import suspect
from moesaic.adapt.proof.hypotheses import Kind, layers_of_moes
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.results import Stage

MOST_EXPERTS = 256  # that are tried one by one
GENERAL: tuple[Kind, ...] = ("router", "experts", "positions", "attention", "norms", "model")
OF_SCORES: tuple[Kind, ...] = ("positions", "attention")


@dataclass(frozen=True)
class Evidence:
    """Where to look.

    Attributes:
        lines: what was seen, for people.
        kinds: of hypotheses about the spec, the likeliest first.
        experts: (place among layers with experts, expert) that explain which tokens differ, the likeliest first.
        experts_first: they are likelier than anything about the spec.
        windows: positions from which on something differs.
    """

    lines: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = GENERAL
    experts: tuple[tuple[int, int], ...] = ()
    experts_first: bool = False
    windows: tuple[int, ...] = ()


def of_lone_experts(oracle: OurModel, stage: Stage) -> Evidence:
    """Of stage 1 or 2."""
    wrong = [c for c in stage.comparisons if c.counts and not c.agrees]
    few = 0 < len(wrong) <= max(1, len(stage.comparisons) // 4)
    place = {layer: m for m, layer in enumerate(oracle.layer_of_moe)}
    experts = tuple((place[c.layer], c.expert) for c in wrong if c.layer in place and c.expert is not None)
    line = f"{len(wrong)} of {len(stage.comparisons)} differ: " + ("a few experts" if few else "not single experts")
    return Evidence((line,), ("experts", "router"), experts[:MOST_EXPERTS], few)


def of_layers(oracle: OurModel, stage: Stage, prompts: Sequence[Prompt], tolerance: float) -> Evidence:
    """Of stage 3."""
    first = next(c for c in stage.comparisons if c.counts and not c.agrees)
    op = suspect(stage.comparisons, first).op
    if op == "attention":
        kinds: tuple[Kind, ...] = (*OF_SCORES, "norms")
        return Evidence((f"attention of layer {first.layer} differs before any expert: positions or attention",), kinds)
    if op in ("router logits", "chosen experts", "weights"):
        return Evidence((f"the router of layer {first.layer} differs, attention does not",), ("router", "norms"))
    if op in ("embedding", "head"):
        return Evidence((f"the {op} differs, the layers do not yet",), ("model", "norms"))
    experts = _explaining(oracle, prompts, tolerance, first.layer)
    lines = [f"what goes into the experts of layer {first.layer} agrees, what comes out does not"]
    lines += _told(oracle, experts)
    return Evidence(tuple(lines), GENERAL, tuple(experts), bool(experts))


def _explaining(
    oracle: OurModel, prompts: Sequence[Prompt], tolerance: float, layer: int | None
) -> list[tuple[int, int]]:
    """The experts of a layer all of whose tokens differ, those with most first."""
    if layer is None or layer not in oracle.layer_of_moe:
        return []
    right: set[int] = set()
    wrong: Counter[int] = Counter()
    for prompt in (p for p in prompts if p.inputs):
        i = layer // oracle.group
        own = oracle.follow(prompt.tokens, prompt.inputs)[i]
        differs = by_token(own["layer"], prompt.ops[i]["layer"], prompt.inputs[i]) > tolerance
        for token, chosen in enumerate(own["chosen experts"].tolist()):
            wrong.update(chosen) if differs[token] else right.update(chosen)
    m = oracle.layer_of_moe.index(layer)
    return [(m, e) for e, _ in wrong.most_common() if e not in right][:MOST_EXPERTS]


def of_logits(oracle: OurModel, prompts: Sequence[Prompt], tolerance: float) -> Evidence:
    """Of stage 4, where only logits are known.

    An expert that is wrong shows first at a token that was routed to it: what stands before is right, and so is the
    routing of this token up to that layer. So an expert explains what is seen if no token before the first difference
    of any sequence went to it, and each of these first tokens did.
    """
    traces = [oracle.run(prompt.tokens, trace=True) for prompt in prompts]
    firsts = [_first(by_token(t.logits, p.logits) > tolerance) for t, p in zip(traces, prompts, strict=True)]
    differing = [(t, at) for t, at in zip(traces, firsts, strict=True) if at is not None]
    if not differing:
        return Evidence(("the plain fp32 model agrees with the reference: only the engine differs",))
    innocent: set[tuple[int, int]] = set()
    for trace, at in zip(traces, firsts, strict=True):
        innocent |= _met(trace, range(len(trace.tokens) if at is None else at))
    counts: Counter[tuple[int, int]] = Counter()
    for trace, at in differing:
        counts.update(_met(trace, [at]) - innocent)
    experts = [pair for pair, count in counts.most_common() if count == len(differing)] or [
        pair for pair, _ in counts.most_common()
    ]
    at_start = sum(at == 0 for _, at in differing)
    places = ", ".join(str(at) for _, at in differing)
    lines = [f"{len(differing)} of {len(prompts)} prompts differ, first at positions {places}"]
    multi = [at for trace, at in differing if len(trace.tokens) > 1]
    if at_start == 0 and len(differing) == sum(len(p.tokens) > 1 for p in prompts) and set(multi) == {1}:
        lines.append("a first token is always right, the second never: what scores tokens by their places or heads")
        return Evidence(
            tuple(lines), (*OF_SCORES, "router", "experts", "norms", "model"), tuple(experts[:MOST_EXPERTS])
        )
    if at_start == len(prompts):
        lines.append("every token differs, the first ones too: something common to all, not a single expert")
        return Evidence(tuple(lines), GENERAL, tuple(experts[:MOST_EXPERTS]), False)
    lines += _told(oracle, experts)
    windows = tuple(sorted({at for _, at in differing})) if len({at for _, at in differing}) == 1 else ()
    return Evidence(tuple(lines), GENERAL, tuple(experts[:MOST_EXPERTS]), bool(experts), windows)


def _first(wrong: Tensor) -> int | None:
    where = wrong.nonzero()
    return int(where[0]) if len(where) else None


def _met(trace: Prompt, positions: Sequence[int] | range) -> set[tuple[int, int]]:
    """The experts that these tokens were routed to."""
    routed = [ops["chosen experts"] for ops in trace.ops if "chosen experts" in ops]
    return {(m, e) for m, ids in enumerate(routed) for at in positions for e in ids[at].tolist()}


def _told(oracle: OurModel, experts: Sequence[tuple[int, int]]) -> list[str]:
    if not experts:
        return ["no single expert explains which tokens differ"]
    layers = layers_of_moes(oracle.model)
    names = [f"layer {layers[m]}, expert {e}" for m, e in experts[:4]]
    more = f" and {len(experts) - 4} more" if len(experts) > 4 else ""
    return [f"the tokens that differ are those routed to {' or '.join(names)}{more}"]

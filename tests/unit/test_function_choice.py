"""Experts and weights by changed scores: every kind of router against what numpy makes of its definition by hand."""

import numpy as np
import pytest
import torch

from moesaic.experts.function_choice import changes_of, choose_by_scores, refused
from moesaic.experts.function_types import Look, RoutingDecision
from moesaic.experts.routing import Routing, RoutingKernels, choose_experts
from moesaic.kernels import reference_router
from moesaic.kernels.cpu import router as cpu
from moesaic.kernels.reference_router import route, route_logits, route_scores
from moesaic.models.spec import RouterSpec
from tests.unit.test_routing_functions import given

T, E, K = 40, 12, 3
GROUPS = {"num_groups": 4, "top_groups": 2}
SPECS = {
    "softmax": RouterSpec(top_k=K),
    "softmax, renormalised": RouterSpec(top_k=K, renormalize=True, scale=2.5),
    "softmax, capped": RouterSpec(top_k=K, cap=1.5),
    "softmax of the chosen": RouterSpec(top_k=K, order="select_then_score"),
    "sigmoid": RouterSpec(top_k=K, scoring="sigmoid", order="select_then_score"),
    "sigmoid, corrected": RouterSpec(top_k=K, scoring="sigmoid", correction=True, renormalize=True, epsilon=1e-20),
    "sigmoid, logits corrected": RouterSpec(top_k=K, scoring="sigmoid", order="select_then_score", correction=True),
    "sigmoid, groups": RouterSpec(top_k=K, scoring="sigmoid", correction=True, renormalize=True, scale=2.0, **GROUPS),
    "softmax, groups": RouterSpec(top_k=K, group_score="max", masked_score=0.0, **GROUPS),
    "root of softplus": RouterSpec(top_k=K, scoring="sqrt_softplus", correction=True, renormalize=True, scale=1.5),
    "sparsemixer": RouterSpec(top_k=2, scoring="sparsemixer", jitter=0.05),
    "scaled experts": RouterSpec(top_k=K, renormalize=True, expert_scale=True, floor=1e-6),
}
ORACLE, CPU = (
    RoutingKernels(*(getattr(of, name) for name in RoutingKernels._fields)) for of in (reference_router, cpu)
)
ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def scores_of(logits, spec):
    return route_scores(logits, spec.scoring, spec.cap)


def material(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator) * 1.5
    correction = torch.randn(E, generator=generator) * 0.2 if spec.correction else None
    scale = torch.rand(E, generator=generator) + 0.5 if spec.expert_scale else None
    return logits, correction, scale


def chosen(kernels, logits, scores, *args, **options):
    """Routes by scores, without experts that score 0."""
    made = choose_by_scores(kernels, logits, scores, *args, **options)
    ids, weights = torch.zeros_like(made.ids), torch.zeros_like(made.weights)
    everywhere = torch.ones(len(ids), dtype=torch.bool)
    kernels.route_replace(ids, weights, made.ids, made.weights, scores.contiguous(), everywhere)
    return Routing(ids, weights)


def by_hand(spec, scores, k, logits, correction, scale):
    """(ids, weights) of one token, in float64, with sets and loops."""
    s = [float(x) for x in scores]
    merit = list(s)
    if correction is not None:
        if spec.order == "select_then_score":
            merit = [np.log(x / (1 - x)) if x > 0 else -np.inf for x in s]
        merit = [m + float(b) for m, b in zip(merit, correction, strict=True)]
    left = {e for e in range(E) if s[e] > 0}
    if spec.num_groups > 1:
        size = E // spec.num_groups
        worth = []
        for g in range(spec.num_groups):
            own = sorted((merit[e] for e in left if e // size == g), reverse=True)
            lacking = -100.0 if spec.group_score == "top2" else 0.0
            pair = (own + [lacking] * 2)[: 2 if spec.group_score == "top2" else 1]
            worth.append(sum(pair) if own else -np.inf)
        best = sorted(range(spec.num_groups), key=lambda g: -worth[g])[: spec.top_groups]
        left = {e for e in left if e // size in best}
    ids = sorted(left, key=lambda e: (-merit[e], e))[:k]
    if spec.scoring == "sparsemixer":
        anchored = np.log(np.sum(np.exp([float(x) for x in logits])))
        x = {e: np.log(s[e]) + anchored for e in range(E) if s[e] > 0}
        weights, pool = [], dict(x)
        for e in ids:
            near = [v for v in pool.values() if (x[e] - v) / max(abs(v), x[e]) <= 2 * spec.jitter]
            weights.append(np.exp(x[e]) / np.sum(np.exp(near)))
            del pool[e]
        return ids, np.array(weights)
    weights = np.array([s[e] for e in ids])
    if spec.order == "select_then_score" and spec.scoring == "softmax":
        weights = weights / weights.sum()
    elif spec.renormalize:
        weights = weights / max(weights.sum() + spec.epsilon, spec.floor)
    weights = weights * spec.scale
    return ids, weights * (1 if scale is None else np.array([float(scale[e]) for e in ids]))


@ALL
def test_unchanged_scores_make_the_models_own_choice(spec):
    logits, correction, scale = material(spec)
    own = choose_experts(route, logits, spec, correction, None, scale)
    k = torch.full((T,), spec.top_k)
    made = chosen(ORACLE, logits, scores_of(logits, spec), k, spec, correction, scale)
    assert torch.equal(made.ids, own.ids)
    torch.testing.assert_close(made.weights, own.weights, rtol=2e-6, atol=1e-7)


@ALL
def test_changed_scores_against_the_definition(spec):
    logits, correction, scale = material(spec)
    generator = torch.Generator().manual_seed(1)
    scores = scores_of(logits, spec) * (0.2 + torch.rand(T, E, generator=generator))
    scores[10:25] *= torch.rand(15, E, generator=generator) > 0.3
    scores[20, :] = 0
    scores[20, 5] = 0.25  # one is left
    scores[21, :] = 0
    scores[21, [2, 3, 11]] = torch.tensor([0.1, 0.4, 0.2])
    if spec.scoring != "softmax" and spec.scoring != "sparsemixer":
        scores = scores.clamp(max=0.999)
    k = torch.arange(T) % 3 + 1
    made = chosen(ORACLE, logits, scores, k, spec, correction, scale)
    assert made.ids.dtype == torch.int32 and made.weights.dtype == torch.float32 and made.ids.shape == (T, 3)
    for row in range(T):
        ids, weights = by_hand(spec, scores[row], int(k[row]), logits[row], correction, scale)
        assert made.ids[row].tolist() == ids + [-1] * (3 - len(ids)), row
        np.testing.assert_allclose(made.weights[row, : len(ids)].numpy(), weights, rtol=1e-4, atol=1e-6)
        assert not made.weights[row, len(ids) :].any()


@ALL
def test_a_token_chooses_alike_in_any_company(spec, isa):
    logits, correction, scale = material(spec)
    whole = cpu.route_scores(logits, spec.scoring, spec.cap)
    scores = whole * 0.7
    scores[:, 4] = 0
    k = torch.full((T,), 2)
    together = chosen(CPU, logits, scores, k, spec, correction, scale)
    for row in range(0, T, 7):
        part = slice(row, row + 1)
        alone = chosen(CPU, logits[part], scores[part], k[part], spec, correction, scale)
        assert torch.equal(alone.ids, together.ids[part]) and torch.equal(alone.weights, together.weights[part])
        assert torch.equal(cpu.route_scores(logits[part], spec.scoring, spec.cap), whole[part])


@ALL
def test_the_kernels_against_the_oracle(spec, isa):
    logits, *_ = material(spec)
    logits[3, 5] = float("-inf")
    options = {"scoring": spec.scoring, "cap": spec.cap}
    scores = cpu.route_scores(logits, **options)
    torch.testing.assert_close(scores, route_scores(logits, **options), rtol=2e-6, atol=1e-9)
    assert scores[3, 5] == 0
    same = cpu.route_logits(logits, scores, **options)
    assert same[3, 5] == float("-inf")
    if spec.cap is None:
        assert torch.equal(same, logits)
    changed = scores * 0.3
    changed[7, 2] = 0
    back = cpu.route_logits(logits, changed, **options)
    torch.testing.assert_close(back, route_logits(logits, changed, **options), rtol=2e-6, atol=1e-6)
    assert back[7, 2] == float("-inf")


def test_the_scores_are_those_that_the_router_weighs_with(isa):
    for name in ("softmax", "sigmoid", "root of softplus"):
        spec = SPECS[name]
        logits, *_ = material(spec)
        ids, weights = cpu.route(logits, K, scoring=spec.scoring)
        assert torch.equal(cpu.route_scores(logits, spec.scoring).gather(1, ids.long()), weights)


def test_time_in_the_router_is_counted(isa):
    for kernels in (cpu, reference_router):
        before = kernels.route_seconds()
        kernels.route(torch.randn(2000, 64), 4)
        once = kernels.route_seconds() - before
        assert 0 < once < 10
        assert kernels.route_seconds() == before + once


def test_more_experts_than_the_model_takes():
    spec = SPECS["softmax, renormalised"]
    logits, *_ = material(spec)
    made = chosen(ORACLE, logits, scores_of(logits, spec), torch.full((T,), E), spec)
    assert made.ids.shape == (T, E) and all(sorted(row) == list(range(E)) for row in made.ids.tolist())
    torch.testing.assert_close(made.weights.sum(1), torch.full((T,), 2.5))


def test_which_rows_are_changed():
    x = given()
    scores, k = x.scores.clone(), x.k.clone()
    scores[1, 2] += 0.1
    k[4] = 1
    for kernels in (ORACLE, CPU):
        changes = changes_of(Look(kernels.route_changes), x, RoutingDecision(scores, k))
        assert changes.rows.nonzero().flatten().tolist() == [1, 4] and changes.count == 2
        changes = changes_of(Look(kernels.route_changes), x, RoutingDecision(scores, x.k))
        assert changes.rows.nonzero().flatten().tolist() == [1]
    x.scores[1] = scores[1] = float("nan")
    for kernels in (ORACLE, CPU):
        changes = changes_of(Look(kernels.route_changes), x, RoutingDecision(scores, k))
        assert changes.rows.nonzero().flatten().tolist() == [4]


FAULTS = {
    "nothing": (lambda s: s, 0, False, False),
    "another score": (lambda s: s * 0.5, 3, False, False),
    "a zero": (lambda s: s.index_fill(1, torch.tensor([2]), 0.0), 3, False, True),
    "NaN": (lambda s: s / 0 * 0, 3, True, False),
    "infinity": (lambda s: s / 0, 3, True, False),
    "a negative score": (lambda s: s - 0.9 * s.max(), 3, True, False),
    "no expert": (lambda s: s * 0, 3, True, True),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_made_of_scores(what, isa):
    make, count, faulty, zeros = FAULTS[what]
    before = torch.rand(4, 37) + 0.01
    before[2, 5] = float("nan")
    for kernels in (ORACLE, CPU):
        changes = Look(kernels.route_changes)(before, make(before))
        assert (changes.count, changes.faulty, changes.zeros) == (count, faulty, zeros)
        assert changes.rows.tolist() == [count > 0, count > 0, False, count > 0]


def test_routes_are_replaced_and_counted(isa):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(T, E, generator=generator).round(decimals=1)
    ids = torch.rand(T, E, generator=generator).argsort(1)[:, :5].int()
    ids[7, 3:] = -1
    made = torch.rand(T, E, generator=generator).argsort(1)[:, :3].int()
    made[9, 2] = -1
    weights, new = torch.rand(T, 5, generator=generator), torch.rand(T, 3, generator=generator)
    changed = torch.rand(T, generator=generator) < 0.6
    results = []
    for kernels in (ORACLE, CPU):
        own, weighed, counts = ids.clone(), weights.clone(), torch.full((E,), 100)
        kernels.route_replace(own, weighed, made, new, scores, changed, counts)
        results.append((own, weighed, counts))
    for row in range(T):
        expected = ids[row].tolist()
        if changed[row]:
            expected = [e if e >= 0 and scores[row, e] > 0 else -1 for e in made[row].tolist()] + [-1, -1]
        assert results[1][0][row].tolist() == expected, row
    difference = [int((results[1][0] == e).sum() - (ids == e).sum()) for e in range(E)]
    assert (results[1][2] - 100).tolist() == difference
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_routers_that_do_not_score_are_refused():
    assert "does not score" in refused(RouterSpec(top_k=2, scoring="identity"))
    assert not refused(RouterSpec(top_k=2))

"""C++ routing against the oracle, and both against routers written out by hand."""

import itertools

import pytest
import torch

from moesaic.kernels import reference_router as oracle
from moesaic.kernels.cpu import router as cpu

INF, NAN = float("inf"), float("nan")
BOTH = pytest.mark.parametrize("route", [oracle.route, cpu.route], ids=["oracle", "cpu"])


def logits_of(tokens, experts, seed=0, scale=2.0):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * scale


def same(logits, top_k, **options):
    experts = logits.shape[1]
    mine, theirs = (torch.full((experts,), 3, dtype=torch.int64) for _ in range(2))
    ids, weights = cpu.route(logits, top_k, counts=mine, **options)
    wanted_ids, wanted = oracle.route(logits, top_k, counts=theirs, **options)
    assert ids.dtype == wanted_ids.dtype == torch.int32 and weights.dtype == torch.float32
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted, rtol=3e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
@pytest.mark.parametrize("order", ["score_then_select", "select_then_score"])
def test_every_combination(isa, scoring, order):
    logits = logits_of(37, 24)
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(24, generator=generator) * 0.3
    expert_scale = torch.rand(24, generator=generator) + 0.5
    for renormalize, b, groups, cap in itertools.product([False, True], [None, bias], [1, 6], [None, 3.0]):
        options = {"renormalize": renormalize, "bias": b, "num_groups": groups, "top_groups": min(groups, 2)}
        same(logits, 5, scoring=scoring, order=order, cap=cap, scale=2.5, **options)
        same(logits, 3, scoring=scoring, order=order, group_score="max", expert_scale=expert_scale, **options)
        same(logits, 7, scoring=scoring, order=order, masked_score=0.0, epsilon=1e-6, floor=0.2, **options)


@pytest.mark.parametrize(
    "tokens, experts, top_k", [(0, 8, 2), (1, 1, 1), (3, 2, 2), (5, 17, 17), (2048, 128, 8), (300, 385, 22)]
)
def test_sizes(isa, tokens, experts, top_k):
    logits = logits_of(tokens, experts, seed=tokens)
    same(logits, top_k, renormalize=True)
    same(logits, top_k, scoring="sigmoid", bias=logits_of(1, experts, seed=9)[0])


@pytest.mark.parametrize("experts", [2, 16, 40])
def test_sparsemixer(isa, experts):
    for jitter, shift in itertools.product([0.0, 0.01, 0.2], [-4.0, 0.0, 4.0]):
        same(logits_of(60, experts) + shift, 2, scoring="sparsemixer", jitter=jitter)


@BOTH
def test_sparsemixer_by_hand(isa, route):
    logits = torch.tensor([[1.0, 2.0, 1.9, -3.0]])
    ids, weights = route(logits, 2, scoring="sparsemixer", jitter=0.1)
    assert ids.tolist() == [[1, 2]]
    # 1.9 is within 20 % of 2, 1.0 is not within 20 % of 1.9, and 2 is taken by then.
    torch.testing.assert_close(weights, torch.tensor([[1 / (1 + 2.718281828**-0.1), 1.0]]))


@BOTH
def test_ties_go_to_the_lowest_id(isa, route):
    for options in ({}, {"scoring": "sigmoid", "bias": torch.zeros(40)}, {"num_groups": 8, "top_groups": 3}):
        assert route(torch.zeros(3, 40), 6, **options)[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    logits = torch.zeros(2, 40)
    logits[:, 33] = 1.0
    assert route(logits, 3)[0].tolist() == [[33, 0, 1]] * 2
    assert route(torch.tensor([[-0.0, 0.0, -0.0]]), 3)[0].tolist() == [[0, 1, 2]]


@BOTH
def test_grouped_selection_by_hand(isa, route):
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.7, 0.2, 0.3, 0.3]])
    options = {"scoring": "identity", "num_groups": 4, "top_groups": 2}
    # By the sum of two the best groups are (0.6, 0.5) and (0.9, 0.1); by the best one (0.9, 0.1) and (0.7, 0.2).
    assert route(scores, 3, group_score="top2", **options)[0].tolist() == [[0, 2, 3]]
    ids, weights = route(scores, 3, group_score="max", renormalize=True, scale=2.0, **options)
    assert ids.tolist() == [[0, 4, 5]]
    torch.testing.assert_close(weights, 2 * torch.tensor([[0.9, 0.7, 0.2]]) / 1.8)


@BOTH
def test_a_bias_chooses_but_does_not_weigh(isa, route):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 9.0])
    ids, weights = route(logits, 2, scoring="sigmoid", bias=bias)
    assert ids.tolist() == [[3, 0]]
    torch.testing.assert_close(weights, logits[:, [3, 0]].sigmoid())


@BOTH
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
def test_whatever_the_logits_ids_are_valid(isa, route, scoring):
    logits = logits_of(8, 20)
    logits[0] = NAN
    logits[1, 3] = NAN
    logits[2] = -INF
    logits[3, :18] = -INF
    logits[4, 7] = INF
    logits[5] = INF
    logits[6, ::2], logits[6, 1::2] = NAN, -INF
    logits[7] *= 1e38
    for options in ({}, {"bias": torch.zeros(20)}, {"bias": torch.full((20,), NAN), "num_groups": 5, "top_groups": 1}):
        counts = torch.zeros(20, dtype=torch.int64)
        ids, _ = route(logits, 6, scoring=scoring, renormalize=True, counts=counts, **options)
        for row in ids.tolist():
            assert len(set(row)) == 6 and all(0 <= i < 20 for i in row)
        assert counts.sum() == 8 * 6


def test_nan_is_chosen_alike(isa):
    logits = logits_of(3, 20)
    logits[0, 5], logits[1, 2], logits[2, 19] = NAN, INF, -INF
    for order in ("score_then_select", "select_then_score"):
        same(logits, 4, order=order)
    same(logits, 4, scoring="sigmoid", bias=logits[1].nan_to_num(posinf=1.0))


def test_a_token_routes_alike_in_any_batch(isa):
    logits = logits_of(513, 96)
    options = {"scoring": "sigmoid", "bias": logits[0] * 0.1, "num_groups": 8, "top_groups": 3, "renormalize": True}
    ids, weights = cpu.route(logits, 6, **options)
    for t in (0, 100, 512):
        alone = cpu.route(logits[t : t + 1], 6, **options)
        assert torch.equal(alone[0][0], ids[t]) and torch.equal(alone[1][0], weights[t])


def test_sizes_that_do_not_fit_are_refused():
    logits = logits_of(2, 8)
    with pytest.raises(ValueError, match="top_k is 9 of 8 experts"):
        cpu.route(logits, 9)
    with pytest.raises(ValueError, match="1 of 3 groups of 8 experts"):
        cpu.route(logits, 2, num_groups=3)
    with pytest.raises(ValueError, match="bias is"):
        cpu.route(logits, 2, bias=torch.zeros(7))

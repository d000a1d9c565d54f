"""Routing, statistics and the four stages of the experts' layer."""

import pytest
import torch

from moesaic.experts.layer import MoE
from moesaic.experts.routing import Router
from moesaic.experts.stats import ExpertStats
from moesaic.layers.base import BuildContext
from moesaic.models.spec import MoESpec, RouterSpec
from moesaic.weights.loader import fill_dummy

CONTEXT = BuildContext(torch.device("cpu"), torch.float32)
route = Router(4, 4, RouterSpec(top_k=1), ctx=CONTEXT).choose
KINDS = [
    RouterSpec(top_k=2),
    RouterSpec(top_k=2, renormalize=True),
    RouterSpec(top_k=2, order="select_then_score"),
]


@pytest.mark.parametrize("spec", KINDS, ids=lambda s: f"{s.order} {s.renormalize}")
def test_route(spec):
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    routing = route(logits, spec)
    assert routing.ids.dtype == torch.int32 and routing.weights.dtype == torch.float32
    assert routing.ids.tolist() == [[1, 3]]
    best = torch.tensor([3.0, 2.0]).exp()
    total = best.sum() if spec.renormalize or spec.order == "select_then_score" else logits.exp().sum()
    torch.testing.assert_close(routing.weights[0], best / total)


@pytest.mark.parametrize("spec", KINDS, ids=lambda s: f"{s.order} {s.renormalize}")
@pytest.mark.parametrize("num_experts", [4, 16, 128])
def test_ties_go_to_the_lowest_id(spec, num_experts):
    tokens = 65
    assert route(torch.zeros(tokens, num_experts), spec).ids.tolist() == [[0, 1]] * tokens
    logits = torch.zeros(tokens, num_experts)
    logits[:, -1] = 1.0
    assert route(logits, spec).ids.tolist() == [[num_experts - 1, 0]] * tokens


def test_low_precision_logits_are_scored_in_fp32():
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = route(logits, RouterSpec(top_k=8)).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))


def test_stats_count_every_routed_token():
    stats = ExpertStats(3, 4, torch.device("cpu"))
    logits = torch.tensor([[3.0, 0, 0, 2], [0, 2, 0, 3], [0, 2, 0, 3]])
    tap = stats.tap(1, 4, 2)
    route(logits[:2], RouterSpec(top_k=2), tap.counts)
    route(logits[2:], RouterSpec(top_k=2), tap.counts)
    assert stats.counts.tolist() == [[0] * 4, [1, 2, 0, 3], [0] * 4]
    stats.reset()
    assert not stats.counts.any()


def moe_layer(stats=None):
    spec = MoESpec(num_experts=6, intermediate_size=5, router=RouterSpec(top_k=3, renormalize=True))
    layer = MoE(CONTEXT, spec, 8, 0, stats or ExpertStats(1, 6, CONTEXT.device))
    parameters = dict(layer.named_views())
    fill_dummy(parameters, seed=0)
    for parameter in parameters.values():
        parameter.mul_(40)
    return layer


def test_named_views_cover_every_weight_once():
    layer = moe_layer()
    views = dict(layer.named_views())
    assert len(views) == 1 + 3 * 6
    assert "router.weight" in views and views["experts.5.down.weight"].shape == (8, 5)
    storage = {(v.data_ptr(), v.numel()) for v in views.values()}
    assert len(storage) == len(views)
    assert sum(v.numel() for v in views.values()) == sum(p.numel() for p in layer.parameters())
    assert sum(p.numel() for p in layer.parameters()) == layer.spec.num_parameters(8)


def test_the_layer_is_the_weighted_sum_of_its_experts():
    stats = ExpertStats(1, 6, CONTEXT.device)
    layer = moe_layer(stats)
    hidden = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    out = layer(hidden)
    routing = route(hidden @ layer.router.weight.T, layer.spec.router)
    views = dict(layer.named_views())
    for t in range(9):
        expected = torch.zeros(8)
        for e, w in zip(routing.ids[t].tolist(), routing.weights[t], strict=True):
            gate, up, down = (views[f"experts.{e}.{part}.weight"] for part in ("gate", "up", "down"))
            expected += w * (down @ (torch.nn.functional.silu(gate @ hidden[t]) * (up @ hidden[t])))
        torch.testing.assert_close(out[t], expected, rtol=1e-4, atol=1e-5)
    assert stats.counts.sum() == 9 * 3


def test_moving_pages_changes_nothing():
    layer = moe_layer()
    hidden = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    before = layer(hidden)
    pages, order = layer.experts, torch.tensor([3, 0, 5, 1, 4, 2])
    gate_up, down = pages.gate_up.data.clone(), pages.down.data.clone()
    pages.gate_up.data[order], pages.down.data[order], pages.slot_of = gate_up, down, order.int()
    # Equal in value, not in bits: rows of a product may be summed in another order where they lie elsewhere.
    torch.testing.assert_close(layer(hidden), before)

"""The layer library by itself: prefixes, formats, loading by shards, and what is said where something is wrong."""

import pytest
import torch
from torch import nn

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.library import describe
from moesaic.layers.base import REFERENCE, BuildContext
from moesaic.layers.context import Construction, building
from moesaic.layers.loading import expose
from moesaic.library import (
    ActivatedLinear,
    Attention,
    ColumnParallelLinear,
    FusedMoE,
    GatedLinear,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RMSNorm,
    Router,
    RowParallelLinear,
    StableRouter,
    VocabParallelEmbedding,
    default_weight_loader,
    get_rope,
)
from moesaic.weights.quantization import QuantizationPlan

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif("unavailable" in describe(), reason="the C++ kernels are not built")),
]


def construction(backend="reference", config=None):
    backends = dict.fromkeys(REFERENCE, backend)
    plan = QuantizationPlan.read("float32", "none", 32, config)
    ctx = BuildContext(torch.device("cpu"), torch.float32, backends=backends, formats=plan.format_of)
    return Construction(ctx, quantised=plan.quantised)


@pytest.fixture(params=BACKENDS)
def built(request):
    with building(construction(request.param)) as found:
        yield found


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load(layer, **weights):
    """Fill the parameters of one layer through their loaders: name -> weight, or (weight, shard) pairs."""
    expose(layer)
    params = dict(layer.named_parameters())
    assert set(params) == set(weights)
    for name, given in weights.items():
        for weight, *shard in given if isinstance(given, list) else [(given,)]:
            layer.weight_loader(params[name], weight, *shard)


def test_plain_projections(built):
    x, weight, bias = random(3, 6), random(5, 6, seed=1), random(5, seed=2)
    for kind in (ReplicatedLinear, RowParallelLinear, ColumnParallelLinear):
        layer = kind(6, 5, bias=True, prefix=kind.__name__)
        load(layer, weight=weight, bias=bias)
        torch.testing.assert_close(layer(x), x @ weight.T + bias)


def test_merged_projections_are_loaded_by_shard(built):
    x, parts = random(3, 8), [random(n, 8, seed=n) for n in (4, 2, 6)]
    merged = MergedColumnParallelLinear(8, [4, 2, 6], prefix="merged")
    load(merged, weight=[(parts[2], 2), (parts[0], 0), (parts[1], 1)])
    torch.testing.assert_close(merged(x), x @ torch.cat(parts).T)
    qkv = QKVParallelLinear(8, 2, 3, 1, bias=True, prefix="qkv")
    q, k, v = random(6, 8, seed=1), random(2, 8, seed=2), random(2, 8, seed=3)
    load(qkv, weight=[(v, "v"), (q, "q"), (k, "k")], bias=torch.arange(10.0))
    torch.testing.assert_close(qkv(x), x @ torch.cat((q, k, v)).T + torch.arange(10.0))
    gated = GatedLinear(8, 4, "silu", prefix="gated")
    gate, up = random(4, 8, seed=4), random(4, 8, seed=5)
    load(gated, weight=[(up, "up"), (gate, "gate")])
    torch.testing.assert_close(gated(x), nn.functional.silu(x @ gate.T) * (x @ up.T))
    activated = ActivatedLinear(8, [4], "relu", prefix="activated")
    load(activated, weight=gate)
    torch.testing.assert_close(activated(x), (x @ gate.T).relu())


def test_what_cannot_be_loaded_is_refused(built):
    layer = QKVParallelLinear(8, 2, 3, 1, prefix="qkv")
    expose(layer)
    param = dict(layer.named_parameters())["weight"]
    assert param.shape == (10, 8)
    with pytest.raises(CheckpointError, match=r"weight, shard q is \[6, 8\], the checkpoint's weight \[2, 8\]"):
        param.weight_loader(param, torch.zeros(2, 8), "q")
    with pytest.raises(CheckpointError, match="no shard 'gate'; there are q, k, v"):
        param.weight_loader(param, torch.zeros(2, 8), "gate")
    with pytest.raises(CheckpointError, match="has 10 rows"):
        param.weight_loader(param, torch.zeros(11, 8))


def test_embedding_and_head(built):
    table = random(7, 4)
    embed = VocabParallelEmbedding(7, 4, prefix="embed")
    tied = ParallelLMHead(7, 4, tied=embed, prefix="lm_head")
    load(embed, weight=table)
    assert torch.equal(embed(torch.tensor([3, 0])), table[[3, 0]])
    torch.testing.assert_close(tied(table), table @ table.T)
    assert not expose(tied)
    own = ParallelLMHead(7, 4, bias=True, prefix="other_head")
    load(own, weight=table, bias=torch.ones(7))
    torch.testing.assert_close(own(table), table @ table.T + 1)


def test_norm_of_a_sum_and_of_columns(built):
    norm = RMSNorm(8, 1e-5)
    weight = random(8).abs()
    load(norm, weight=weight)
    x, residual = random(3, 8, seed=1), random(3, 8, seed=2)

    def expected(x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    torch.testing.assert_close(norm(x), expected(x))
    wide = random(3, 20, seed=3)
    torch.testing.assert_close(norm(wide[:, 4:12]), expected(wide[:, 4:12]))
    torch.testing.assert_close(norm(wide[:, 4:].view(3, 2, 8)), expected(wide[:, 4:].view(3, 2, 8)))
    total = x + residual
    normed, summed = norm(x, residual)
    torch.testing.assert_close(summed, total)
    torch.testing.assert_close(normed, expected(total))


def test_rope_turns_columns(built):
    rope = get_rope(8, rotary_dim=4, base=100.0)
    merged = random(5, 48)
    q, k = rope(torch.arange(5), merged[:, :32], merged[:, 32:])
    assert q.shape == (5, 32) and k.shape == (5, 16)
    torch.testing.assert_close(q[0], merged[0, :32])
    angles = torch.tensor([1.0, 100**-0.5]) * 2
    a, b = merged[2, 32:34], merged[2, 34:36]
    expected = torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), merged[2, 36:40]))
    torch.testing.assert_close(k[2, :8], expected)


def experts_of(x, routing, gate, up, down):
    out = torch.zeros_like(x)
    for token, (ids, weights) in enumerate(zip(routing.ids.tolist(), routing.weights, strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            inner = nn.functional.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
            out[token] += weight * (down[expert] @ inner)
    return out


def test_experts_by_a_router_or_by_logits(built):
    x, weight = random(5, 8), random(4, 8, seed=1)
    router = Router(8, 4, top_k=2, renormalize=True, prefix="layers.0.gate")
    moe = FusedMoE(4, 2, 8, 6, prefix="layers.0.experts")
    load(router, weight=weight)
    gate, up, down = random(4, 6, 8, seed=2), random(4, 6, 8, seed=3), random(4, 8, 6, seed=4)
    expose(moe)
    params = {name: p for name, p in moe.named_parameters() if name.startswith("w")}
    assert {name: tuple(p.shape) for name, p in params.items()} == {"w13_weight": (4, 12, 8), "w2_weight": (4, 8, 6)}
    wide = params["w13_weight"]
    for e in range(4):
        moe.weight_loader(wide, gate[e], "", shard_id="w1", expert_id=e)
        wide.weight_loader(wide, up[e], "", shard_id="w3", expert_id=e)
    params["w2_weight"].weight_loader(params["w2_weight"], down)  # of all experts at once
    routing = router(x)
    expected = experts_of(x, routing, gate, up, down)
    torch.testing.assert_close(moe(x, routing), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moe(x, x @ weight.T), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"no shard '4.w1'"):
        wide.weight_loader(wide, gate[0], "", shard_id="w1", expert_id=4)


def test_a_stable_router_clamps_logits(built):
    plain, stable = (kind(4, 3, top_k=2, scoring="identity", prefix=kind.__name__) for kind in (Router, StableRouter))
    for router in (plain, stable):
        load(router, weight=torch.eye(3, 4))
    x = torch.tensor([[200.0, 90.0, 3.0, 0.0], [-200.0, -300.0, -60.0, 0.0], [1.0, 2.0, 3.0, 0.0]])
    assert plain(x).weights.tolist() == [[200, 90], [-60, -200], [3, 2]]
    routing = stable(x)
    assert routing.weights.tolist() == [[50, 50], [-50, -50], [3, 2]]
    assert routing.ids.tolist() == [[0, 1], [0, 1], [2, 1]]  # what is level goes to the lowest
    assert StableRouter(4, 3, top_k=2, limit=5.0, scoring="identity", prefix="other").limit == 5.0


def test_two_layers_with_one_prefix_are_refused(built):
    Attention(4, 8, 1.0, 2, prefix="layers.0.attn")
    with pytest.raises(ConfigError, match="two layers have the prefix 'layers.0.attn'"):
        Attention(4, 8, 1.0, 2, prefix="layers.0.attn")
    with pytest.raises(ConfigError, match="needs a prefix"):
        Attention(4, 8, 1.0)
    with pytest.raises(ConfigError, match="do not share 3 KV heads"):
        Attention(4, 8, 1.0, 3, prefix="layers.1.attn")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Attention(4, 8, 1.0, per_layer_sliding_window=0, prefix="layers.1.attn")


def test_outside_of_a_model_and_of_a_step(built):
    attention = Attention(4, 8, 1.0, 2, prefix="a")
    with pytest.raises(ConfigError, match="outside of a step"):
        attention(torch.zeros(1, 32), torch.zeros(1, 16), torch.zeros(1, 16))


def test_a_layer_belongs_to_a_model():
    with pytest.raises(ConfigError, match="only while its model is built"):
        ReplicatedLinear(3, 4, prefix="a")


@pytest.mark.skipif("unavailable" in describe(), reason="the C++ kernels are not built")
def test_formats_are_chosen_by_prefix():
    config = "layers.*=w8a16,layers.1=none,layers.*.experts.1-2.**=w4a16:32,layers.*.o=w4a16:64"
    w8, plain = WeightFormat("w8", 32), WeightFormat("f32")
    with building(construction("cpu", config)):
        assert ReplicatedLinear(64, 4, prefix="model.layers.0.q").weight.format == w8
        assert ReplicatedLinear(64, 4, prefix="model.layers.1.q").weight.format == plain
        assert ReplicatedLinear(64, 4, prefix="layers.0.o").weight.format == WeightFormat("w4", 64, True)
        assert ReplicatedLinear(64, 4, prefix="layers.2.q", linear_method="none").weight.format == plain
        assert ReplicatedLinear(64, 4, prefix="layers.3.q", linear_method=w8).weight.format == w8
        assert Router(64, 4, top_k=1, prefix="layers.0.gate").weight.format == plain
        assert VocabParallelEmbedding(9, 64, prefix="layers.0.embed").weight.format == plain
        pages = FusedMoE(4, 1, 64, 32, prefix="layers.0.experts").experts.packed.gate_up
        assert [page.format.kind for page in pages] == ["w8", "w4", "w4", "w8"]
        with pytest.raises(ConfigError, match="has no prefix, by which its format is chosen"):
            ReplicatedLinear(64, 4)
        with pytest.raises(ConfigError, match="unknown format 'w5a16'"):
            ReplicatedLinear(64, 4, prefix="x", linear_method="w5a16")


def test_a_quantised_method_needs_the_kernels():
    with building(construction("reference")), pytest.raises(UnsupportedError, match="needs the C\\+\\+ kernels"):
        ReplicatedLinear(64, 4, prefix="a", linear_method="w8a16")


def test_default_weight_loader_fills_what_has_none():
    param = nn.Parameter(torch.zeros(2))
    default_weight_loader(param, torch.ones(2))
    assert param.tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="a parameter is"):
        default_weight_loader(param, torch.ones(3))

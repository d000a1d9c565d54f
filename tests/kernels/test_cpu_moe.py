"""A layer of experts in the C++ backend against its oracle, in every format, on every instruction set."""

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels import reference_moe as reference
from moesaic.kernels.cpu.matmul import GATED_ONLY, PackedExperts, fused_moe
from moesaic.kernels.cpu.packed import PackedMatrix
from tests.kernels.test_cpu_matmul import FORMATS, error, tolerance

F32, BF16, W8, W4 = (WeightFormat(kind) for kind in ("f32", "bf16", "w8", "w4"))


def experts(format=F32, num=6, hidden=72, inner=40, gated=True, bias=False, seed=0):
    """Random experts; `format` is one, or one for each slot."""
    generator = torch.Generator().manual_seed(seed)
    formats = [format] * num if isinstance(format, WeightFormat) else format
    wide = (2 if gated else 1) * inner

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return PackedExperts(
        torch.randperm(num, generator=generator).int(),
        [PackedMatrix.of(random(wide, hidden) / hidden**0.5, f, gated) for f in formats],
        [PackedMatrix.of(random(hidden, inner) / inner**0.5, f) for f in formats],
        [random(wide) for _ in formats] if bias else None,
        [random(hidden) for _ in formats] if bias else None,
    )


def tokens(num, layer, k=3, seed=1):
    """hidden, ids, weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num, layer.hidden_size, generator=generator)
    scores = torch.rand(num, len(layer.slot_of), generator=generator)
    return hidden, scores.topk(k).indices.int(), torch.rand(num, k, generator=generator)


def check(isa, format, layer, case, **options):
    got, wanted = fused_moe(*case, layer, **options), reference.fused_moe(*case, layer, **options)
    assert got.shape == wanted.shape
    assert error(got, wanted) < 3 * tolerance(format, isa)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_agrees_with_its_oracle(isa, format):
    layer = experts(format)
    for num in (1, 2, 9, 60):
        check(isa, format, layer, tokens(num, layer))


@pytest.mark.parametrize("hidden, inner", [(33, 17), (1, 1), (130, 65)])
@pytest.mark.parametrize("format", [BF16, W8, W4], ids=str)
def test_odd_sizes(isa, format, hidden, inner):
    layer = experts(format, hidden=hidden, inner=inner)
    for num in (1, 30):
        check(isa, format, layer, tokens(num, layer))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "swigluoai", "silu_clamped"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight_on_input", [False, True])
def test_activations_biases_and_where_the_weight_goes(isa, activation, bias, weight_on_input):
    for gated in (True, False):
        if gated or activation not in GATED_ONLY:
            layer = experts(F32, gated=gated, bias=bias)
            case = tokens(9, layer)
            check(isa, F32, layer, case, activation=activation, limit=0.5, weight_on_input=weight_on_input)


@pytest.mark.parametrize("num", [0, 1, 7, 300, 2048])
def test_any_number_of_tokens(isa, num):
    layer = experts(BF16, hidden=64, inner=32)
    case = tokens(num, layer)
    if num == 0:
        assert fused_moe(*case, layer).shape == (0, 64)
    else:
        check(isa, BF16, layer, case)


def test_one_expert_that_takes_all_and_experts_that_take_none(isa):
    layer = experts(W8)
    hidden, ids, weights = tokens(400, layer, k=1)
    check(isa, W8, layer, (hidden, torch.full_like(ids, 4), weights))
    # one token that chose the same expert with every choice
    check(isa, W8, layer, (hidden[:1], torch.full((1, 3), 2, dtype=torch.int32), torch.rand(1, 3)))


def test_choices_that_are_left_out(isa):
    layer = experts(W8)
    hidden, ids, weights = tokens(20, layer)
    ids[3, 1], ids[5], ids[7, 0], ids[9, 2] = -1, -1, 6, 2**31 - 1  # padding, and what no expert has
    layer.slot_of[1] = -1  # an expert that is not there
    wanted = reference.fused_moe(hidden, ids, weights, layer)
    got = fused_moe(hidden, ids, weights, layer)
    assert error(got, wanted) < 1e-4 and (got[5] == 0).all()
    layer.slot_of.fill_(-1)
    assert (fused_moe(hidden, ids, weights, layer) == 0).all()


def test_experts_of_different_formats_in_one_layer(isa):
    layer = experts([F32, BF16, W8, W4, WeightFormat("w8", 32, True), WeightFormat("w8a8")])
    for num in (1, 50):
        check(isa, WeightFormat("w8a8"), layer, tokens(num, layer))


def test_experts_that_move(isa):
    """The page table is read when the call runs, and a slot can be given other weights."""
    layer, other = experts(W4), experts(W8, seed=5)
    case = tokens(5, layer)
    fused_moe(*case, layer)
    layer.slot_of.copy_(layer.slot_of.flip(0))
    layer.place(2, other.gate_up[3], other.down[3])
    check(isa, W4, layer, case)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_tokens_bits_do_not_depend_on_its_neighbours(isa, format):
    layer = experts(format, num=3)
    hidden, ids, weights = tokens(70, layer, k=2)
    together = fused_moe(hidden, ids, weights, layer)
    for first, count in [(0, 1), (5, 1), (1, 3), (4, 9), (30, 40)]:
        part = slice(first, first + count)
        assert torch.equal(fused_moe(hidden[part], ids[part], weights[part], layer), together[part])
    for block_size in (1, 5, 16):
        assert torch.equal(fused_moe(hidden, ids, weights, layer, block_size=block_size), together)


def test_what_does_not_fit_is_refused():
    layer = experts()
    hidden, ids, weights = tokens(4, layer)
    with pytest.raises(ValueError, match=r"hidden is \[4, 71\], the experts take \[T, 72\]"):
        fused_moe(hidden[:, 1:].contiguous(), ids, weights, layer)
    with pytest.raises(ValueError, match=r"4 tokens, but ids are \[3, 3\]"):
        fused_moe(hidden, ids[:3], weights[:3], layer)
    with pytest.raises(ValueError, match=r"torch.int32 tensor on the CPU, got torch.int64"):
        fused_moe(hidden, ids.long(), weights, layer)
    with pytest.raises(ValueError, match="swigluoai is for gated experts"):
        fused_moe(hidden, ids, weights, experts(gated=False), activation="swigluoai")
    with pytest.raises(ValueError, match=r"the page table names slot 5 of 3"):
        PackedExperts(layer.slot_of, layer.gate_up[:3], layer.down[:3])
    with pytest.raises(ValueError, match=r"slot 1 holds"):
        wrong = PackedExperts(layer.slot_of, layer.gate_up, [layer.down[0], layer.gate_up[0], *layer.down[2:]])
        fused_moe(hidden, ids, weights, wrong)


def test_what_is_routed_and_what_blocks_have_room_for_is_tallied(isa):
    layer = experts(W8)
    hidden, ids, weights = tokens(150, layer)
    ids[3, 1] = -1  # a choice that is left out
    counts = [n for n in torch.bincount(ids[ids >= 0]).tolist() if n]
    assert max(counts) > 64
    for block_size, rows in ((0, 12 if isa.startswith("avx512") else 6), (4, 4), (64, 64)):
        tally = torch.tensor([1000, 2000])
        fused_moe(hidden, ids, weights, layer, block_size=block_size, tally=tally)
        assert tally.tolist() == [1000 + sum(counts), 2000 + sum(-(-n // rows) * rows for n in counts)]

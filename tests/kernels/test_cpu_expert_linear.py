"""One matrix of each chosen expert in the C++ backend against its oracle, in every format, alone as in a batch."""

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels import reference_expert_linear as oracle
from moesaic.kernels.cpu.expert_linear import gather_linear, spread_linear
from tests.kernels.test_cpu_matmul import FORMATS, error, tolerance
from tests.kernels.test_cpu_moe import BF16, F32, W4, W8, experts, tokens

pytestmark = pytest.mark.usefixtures("isa")


def both_ways(layer, num, group, k=3):
    """The queries' side, and the outputs' side of something else; ours and the oracle's."""
    hidden, ids, weights = tokens(num, layer, k=k)
    inner = torch.randn(num, layer.intermediate_size // group, k, group, generator=torch.Generator().manual_seed(2))
    yield spread_linear(hidden, ids, layer, group), oracle.spread_linear(hidden, ids, layer, group)
    yield gather_linear(inner, ids, weights, layer), oracle.gather_linear(inner, ids, weights, layer)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_agrees_with_its_oracle(isa, format):
    layer = experts(format, gated=False)
    for num in (1, 2, 60, 500):
        for got, wanted in both_ways(layer, num, 8):
            assert got.shape == wanted.shape
            assert error(got, wanted) < 3 * tolerance(format, isa)


@pytest.mark.parametrize("hidden, inner, group", [(33, 17, 17), (33, 17, 1), (1, 1, 1), (130, 66, 33), (64, 96, 48)])
@pytest.mark.parametrize("format", [BF16, W8, W4], ids=str)
def test_odd_sizes(isa, format, hidden, inner, group):
    layer = experts(format, hidden=hidden, inner=inner, gated=False)
    for num in (0, 1, 30):
        for got, wanted in both_ways(layer, num, group):
            assert got.shape == wanted.shape
            assert num == 0 or error(got, wanted) < 3 * tolerance(format, isa)


def test_experts_of_different_formats_in_one_layer(isa):
    layer = experts([F32, BF16, W8, W4, WeightFormat("w8", 32, True), WeightFormat("w8a8")], gated=False)
    for got, wanted in both_ways(layer, 50, 8):
        assert error(got, wanted) < 3 * tolerance(WeightFormat("w8a8"), isa)


def test_choices_that_are_left_out():
    layer = experts(gated=False)
    hidden, ids, weights = tokens(20, layer)
    ids[3, 1], ids[5], ids[7, 0], ids[9, 2] = -1, -1, 6, 2**31 - 1
    layer.slot_of[1] = -1
    spread = spread_linear(hidden, ids, layer, 8)
    torch.testing.assert_close(spread, oracle.spread_linear(hidden, ids, layer, 8), rtol=1e-4, atol=1e-5)
    assert (spread[5] == 0).all() and (spread[3, :, 1] == 0).all() and (spread[3, :, 0] != 0).any()
    gathered = gather_linear(torch.randn_like(spread), ids, weights, layer)
    assert (gathered[5] == 0).all() and (gathered[3] != 0).any()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_tokens_bits_do_not_depend_on_its_neighbours(format):
    layer = experts(format, num=3, gated=False)
    hidden, ids, weights = tokens(300, layer, k=2)
    spread = spread_linear(hidden, ids, layer, 8)
    gathered = gather_linear(spread, ids, weights, layer)
    for first, count in [(0, 1), (5, 1), (1, 3), (30, 140)]:
        part = slice(first, first + count)
        assert torch.equal(spread_linear(hidden[part], ids[part], layer, 8), spread[part])
        assert torch.equal(gather_linear(spread[part], ids[part], weights[part], layer), gathered[part])


def test_what_does_not_fit_is_refused():
    layer = experts(gated=False)
    hidden, ids, weights = tokens(4, layer)
    with pytest.raises(ValueError, match="not gated"):
        spread_linear(hidden, ids, experts(), 8)
    with pytest.raises(ValueError, match=r"the experts take \[T, 72\]"):
        spread_linear(hidden[:3], ids, layer, 8)
    with pytest.raises(ValueError, match="groups of 7 do not make 40 outputs"):
        spread_linear(hidden, ids, layer, 7)
    with pytest.raises(ValueError, match="the experts take 40 numbers"):
        gather_linear(torch.zeros(4, 4, 3, 8), ids, weights, layer)
    with pytest.raises(ValueError, match=r"weights \[3, 3\]"):
        gather_linear(torch.zeros(4, 5, 3, 8), ids, weights[:3], layer)

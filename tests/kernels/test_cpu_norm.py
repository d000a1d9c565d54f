"""C++ norms, embedding and gathered rows against the oracle."""

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels import reference_norm as oracle
from moesaic.kernels.cpu import norm as cpu
from moesaic.kernels.cpu.packed import PackedMatrix

SHAPES = [(0, 8), (1, 1), (1, 7), (3, 33), (5, 64), (2, 131), (70, 2048)]


def rand(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


@pytest.mark.parametrize("rows, size", SHAPES)
def test_norms(isa, rows, size):
    x, weight, bias = rand(rows, size, scale=3), rand(size), rand(size, seed=1)
    close = {"rtol": 2e-5, "atol": 1e-5}
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-6), oracle.rms_norm(x, weight, 1e-6), **close)
    for b in (bias, None):
        # A row of one element is all mean: what is left of it is rounding.
        torch.testing.assert_close(cpu.layer_norm(x, weight, b, 1e-3), oracle.layer_norm(x, weight, b, 1e-3), **close)


@pytest.mark.parametrize("rows, size", SHAPES)
@pytest.mark.parametrize("alpha", [1.0, 0.22])
def test_the_residual_is_added_in_place(isa, rows, size, alpha):
    hidden, delta, weight, bias = rand(rows, size), rand(rows, size, seed=2), rand(size), rand(size, seed=1)
    for name, options in (("add_rms_norm", (weight, 1e-5)), ("add_layer_norm", (weight, bias, 1e-3))):
        for d in (delta, None):
            mine = hidden.clone()
            total, normed = getattr(cpu, name)(mine, d, alpha, *options)
            wanted = getattr(oracle, name)(hidden.clone(), d, alpha, *options)
            assert total is mine
            torch.testing.assert_close(total, wanted[0])
            torch.testing.assert_close(normed, wanted[1], rtol=2e-5, atol=1e-5)


def test_a_norm_of_more_dimensions(isa):
    x, weight = rand(3, 4, 24), rand(24)
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-6), oracle.rms_norm(x, weight, 1e-6), rtol=2e-5, atol=1e-5)


def test_a_row_has_the_same_bits_in_any_batch(isa):
    x, delta, weight, bias = rand(300, 515), rand(300, 515, seed=1), rand(515), rand(515, seed=1)
    together = cpu.add_rms_norm(x.clone(), delta, 0.3, weight, 1e-6)
    other = cpu.layer_norm(x, weight, bias, 1e-6)
    for i in (0, 7, 299):
        alone = cpu.add_rms_norm(x[i : i + 1].clone(), delta[i : i + 1], 0.3, weight, 1e-6)
        assert torch.equal(alone[0][0], together[0][i]) and torch.equal(alone[1][0], together[1][i])
        assert torch.equal(cpu.layer_norm(x[i : i + 1], weight, bias, 1e-6)[0], other[i])


def test_norms_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="a norm over 8 elements"):
        cpu.rms_norm(rand(2, 8), rand(7), 1e-6)
    with pytest.raises(ValueError, match="cannot be added"):
        cpu.add_rms_norm(rand(2, 8), rand(3, 8), 1.0, rand(8), 1e-6)
    with pytest.raises(ValueError, match="contiguous"):
        cpu.rms_norm(rand(8, 2).T, rand(8), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab, size", [(1, 1), (5, 7), (100, 32), (67, 129)])
@pytest.mark.parametrize("scale", [1.0, 5.657])
def test_embed_is_exact(isa, dtype, vocab, size, scale):
    table = rand(vocab, size).to(dtype)
    ids = torch.randint(vocab, (23,), generator=torch.Generator().manual_seed(0))
    kind = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    wanted = oracle.embed(ids, table.float(), scale)
    assert torch.equal(cpu.embed(ids, table, scale), wanted)
    assert torch.equal(cpu.embed(ids, PackedMatrix.of(table, WeightFormat(kind)), scale), wanted)
    assert cpu.embed(ids[:0], table).shape == (0, size)


def test_ids_outside_the_table_are_nan_and_not_read(isa):
    out = cpu.embed(torch.tensor([-1, 2, 5, 2**40]), rand(5, 8))
    assert out.isnan().all(1).tolist() == [True, False, True, True]
    with pytest.raises(ValueError, match="not from a quantised one"):
        cpu.embed(torch.tensor([0]), PackedMatrix.of(rand(32, 64), WeightFormat("w8", 32)))


def test_gather_rows(isa):
    x = rand(9, 37)
    rows = torch.tensor([3, 0, 8, 3])
    assert torch.equal(cpu.gather_rows(x, rows), oracle.gather_rows(x, rows))
    assert cpu.gather_rows(x, rows[:0]).shape == (0, 37)
    assert cpu.gather_rows(x, torch.tensor([9, -1, 1])).isnan().all(1).tolist() == [True, True, False]

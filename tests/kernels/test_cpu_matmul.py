"""Linear layers of the C++ backend against their oracle, in every format, on every instruction set."""

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels import reference_moe as reference
from moesaic.kernels.cpu import matmul
from moesaic.kernels.cpu.matmul import GATED_ONLY
from moesaic.kernels.cpu.packed import PackedMatrix

FLOATS = [WeightFormat(kind) for kind in ("f32", "f16", "bf16")]
INTEGERS = [
    WeightFormat(kind, group, offsets)
    for kind in ("w8", "w4")
    for group in (32, 64, 128, 0)
    for offsets in (False, True)
]
SMALL_INTEGERS = [WeightFormat("w8a8", group) for group in (32, 64, 128, 0)]
MXFP4 = WeightFormat("mxfp4")
FORMATS = [*FLOATS, *INTEGERS, *SMALL_INTEGERS, MXFP4]
SOME = [WeightFormat("f32"), WeightFormat("bf16"), WeightFormat("w8", 128), WeightFormat("w4", 32, True), MXFP4]
each_format = pytest.mark.parametrize("format", FORMATS, ids=str)
some_formats = pytest.mark.parametrize("format", SOME, ids=str)


def tolerance(format, isa):
    """Relative error against exact activations, of the largest product: what an engine makes of them."""
    if format.kind == "w8a8":
        return 2e-2
    if format.kind == "bf16" and isa == "avx512_bf16":
        return 6e-3
    return 1e-4 if format.quantised else 2e-6


def error(got, wanted):
    return ((got - wanted).norm() / wanted.norm().clamp(min=1e-20)).item()


@each_format
@pytest.mark.parametrize("rows, cols", [(70, 130), (32, 256), (1, 1), (33, 515)])
def test_linear_agrees_with_its_oracle(isa, format, rows, cols):
    generator = torch.Generator().manual_seed(rows)
    matrix = PackedMatrix.of(torch.randn(rows, cols, generator=generator), format)
    bias = torch.randn(rows, generator=generator)
    for tokens in (1, 2, 5, 7, 40):
        x = torch.randn(tokens, cols, generator=generator)
        assert error(matmul.linear(x, matrix), reference.linear(x, matrix)) < tolerance(format, isa)
        got, wanted = matmul.linear(x, matrix, bias, 0.5), reference.linear(x, matrix, bias, 0.5)
        assert error(got, wanted) < tolerance(format, isa)


@each_format
def test_a_rows_bits_do_not_depend_on_its_neighbours(isa, format):
    x = torch.randn(150, 300)
    matrix = PackedMatrix.of(torch.randn(70, 300), format)
    together = matmul.linear(x, matrix)
    for first, count in [(0, 1), (3, 1), (1, 2), (0, 3), (7, 4), (2, 6), (5, 7), (0, 13), (20, 100), (1, 149)]:
        alone = matmul.linear(x[first : first + count].contiguous(), matrix)
        assert torch.equal(alone, together[first : first + count])


@some_formats
def test_bits_do_not_depend_on_the_number_of_threads(isa, format):
    x = torch.randn(40, 512)
    matrix = PackedMatrix.of(torch.randn(200, 512), format)
    together = matmul.linear(x, matrix)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(matmul.linear(x, matrix), together)
    finally:
        torch.set_num_threads(threads)


@some_formats
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "swigluoai", "silu_clamped"])
def test_gated_and_activated(isa, format, activation):
    x = torch.randn(9, 96)
    weight, bias = torch.randn(2 * 37, 96) / 5, torch.randn(2 * 37)
    matrix = PackedMatrix.of(weight, format, gated=True)
    wanted = reference.gated_linear(x, matrix, bias, activation, limit=0.5)
    assert error(matmul.gated_linear(x, matrix, bias, activation, limit=0.5), wanted) < 2 * tolerance(format, isa)
    if activation not in GATED_ONLY:
        plain = PackedMatrix.of(weight, format)
        wanted = reference.activated_linear(x, plain, bias, activation)
        assert error(matmul.activated_linear(x, plain, bias, activation), wanted) < 2 * tolerance(format, isa)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_activations_of_large_and_special_numbers(isa, activation):
    x = torch.tensor([-1e30, -200.0, -100.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 100.0, 200.0, 1e30, float("nan")])
    identity = PackedMatrix.of(torch.eye(1), WeightFormat("f32"))
    got = matmul.activated_linear(x.unsqueeze(1), identity, activation=activation)
    wanted = reference.ACTIVATIONS[activation](x.unsqueeze(1))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@some_formats
def test_no_rows_and_many_rows(isa, format):
    matrix = PackedMatrix.of(torch.randn(40, 64), format)
    assert matmul.linear(torch.empty(0, 64), matrix).shape == (0, 40)
    x = torch.randn(2048, 64)
    assert error(matmul.linear(x, matrix), reference.linear(x, matrix)) < tolerance(format, isa)


@each_format
def test_numbers_that_are_not_finite_show_and_zeros_stay_zero(isa, format):
    x = torch.randn(12, 300)
    x[3, 17], x[7, 299], x[5] = float("nan"), float("inf"), 0.0
    y = matmul.linear(x, PackedMatrix.of(torch.randn(40, 300).abs() + 1, format))
    spoilt = ~y.isfinite()
    assert spoilt[3].all() and spoilt[7].all()
    assert not spoilt[[0, 1, 2, 4, 5, 6, 8, 9, 10, 11]].any()
    assert (y[5] == 0).all()


def test_rows_of_very_different_sizes_keep_their_precision(isa):
    """A quantised activation's scale is its own group's, so that an outlier spoils no other group."""
    x = torch.randn(4, 512) * torch.logspace(-8, 8, 512)
    matrix = PackedMatrix.of(torch.randn(32, 512) / torch.logspace(-8, 8, 512), WeightFormat("f32"))
    assert error(matmul.linear(x, matrix), reference.linear(x, matrix)) < 1e-5
    x[:, 256:] = torch.randn(4, 256) * 1e4
    x[:, :256] = torch.randn(4, 256)
    weight = torch.randn(32, 512)
    weight[:, 256:] = 0
    matrix = PackedMatrix.of(weight, WeightFormat("w8", 128))
    assert error(matmul.linear(x, matrix), reference.linear(x, matrix)) < 1e-4


def test_what_cannot_be_multiplied_is_refused():
    matrix = PackedMatrix.of(torch.randn(40, 64), WeightFormat("f32"))
    with pytest.raises(ValueError, match=r"x is \[2, 65\], the matrix takes \[T, 64\]"):
        matmul.linear(torch.randn(2, 65), matrix)
    with pytest.raises(ValueError, match="contiguous torch.float32 tensor on the CPU, got torch.bfloat16"):
        matmul.linear(torch.randn(2, 64).bfloat16(), matrix)
    with pytest.raises(ValueError, match="contiguous"):
        matmul.linear(torch.randn(64, 2).T, matrix)
    with pytest.raises(ValueError, match=r"a bias is \[39\], the matrix has 40 rows"):
        matmul.linear(torch.randn(2, 64), matrix, torch.randn(39))
    with pytest.raises(ValueError, match="unknown activation 'siluu': did you mean 'silu'"):
        matmul.activated_linear(torch.randn(2, 64), matrix, activation="siluu")
    with pytest.raises(ValueError, match="gated_linear needs a gated matrix"):
        matmul.gated_linear(torch.randn(2, 64), matrix)


def test_a_stream_is_read_to_its_end(isa):
    for size in (0, 1, 255, 256, 1 << 20, (1 << 20) + 77):
        matmul.stream_read(torch.zeros(size, dtype=torch.uint8))

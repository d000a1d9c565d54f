"""Norms of heads and clamping in C++ against their oracles, on rows that lie apart, and alone as in a batch."""

import pytest
import torch

from moesaic.kernels import reference_elementwise, reference_norm
from moesaic.kernels.cpu import heads as cpu

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("shape", [(0, 4, 8), (1, 1, 3), (5, 3, 16), (40, 2, 129)], ids=str)
def test_norm_heads(shape):
    rows, heads, dim = shape
    wide, weight = random(rows, 2 * heads * dim), torch.rand(dim)
    for x in (wide[:, heads * dim :].view(*shape) if rows else random(*shape), random(rows, dim)):
        torch.testing.assert_close(
            cpu.norm_heads(x, weight, 1e-5), reference_norm.norm_heads(x, weight, 1e-5), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 64), (7, 1000)], ids=str)
def test_clamp(shape):
    x = random(shape[0], shape[1] + 3)[:, 3:]
    assert torch.equal(cpu.clamp(x, 1.5), reference_elementwise.clamp(x, 1.5))
    if shape[0]:
        assert cpu.clamp(torch.full((1, 4), float("nan")), 1.5).isnan().all()


def test_a_row_alone_is_the_row_in_a_batch():
    x, weight = random(9, 3, 21), torch.rand(21)
    normed, clamped = cpu.norm_heads(x, weight, 1e-6), cpu.clamp(x[:, 0], 1.0)
    for i in range(9):
        assert torch.equal(cpu.norm_heads(x[i : i + 1], weight, 1e-6), normed[i : i + 1])
        assert torch.equal(cpu.clamp(x[i : i + 1, 0], 1.0), clamped[i : i + 1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="weights of a norm"):
        cpu.norm_heads(random(2, 6), torch.rand(5), 1e-5)
    with pytest.raises(ValueError, match="dense float32 rows"):
        cpu.clamp(random(2, 6).double(), 1.0)

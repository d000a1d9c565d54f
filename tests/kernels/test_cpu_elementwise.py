"""Sums, gates and caps in C++ against their oracle, on sizes that do not fill vectors, and alone as in a batch."""

import pytest
import torch

from moesaic.kernels import reference_elementwise as oracle
from moesaic.kernels.cpu import elementwise as cpu

SIZES = [(0, 8), (1, 1), (3, 7), (5, 64), (2, 1000), (130, 257)]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mix(size):
    x, y, gate = random(*size), random(*size, seed=1), random(size[0], 1, seed=2)
    for options in ((None, 0.5), (y, 0.5, 2.0), (y, 0.5, 2.0, gate), (y,)):
        torch.testing.assert_close(cpu.mix(x, *options), oracle.mix(x, *options), **CLOSE)


@pytest.mark.parametrize("kind", ["sigmoid", "softplus", "identity"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_apply_gate(size, kind):
    rows, cols = size
    x = random(rows, 3 * cols)
    each, shared = random(rows, 3 * cols, seed=1), random(rows, cols + 5, seed=2)[:, :cols]
    for gate in (each, shared):
        torch.testing.assert_close(cpu.apply_gate(x, gate, kind), oracle.apply_gate(x, gate, kind), **CLOSE)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_softcap(size):
    x = random(*size)
    torch.testing.assert_close(cpu.softcap(x, 1.5), oracle.softcap(x, 1.5), **CLOSE)
    assert size[0] == 0 or cpu.softcap(x * 1e4, 1.5).abs().max() <= 1.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_identity(size):
    x, y, weights = random(*size), random(*size, seed=1), random(size[0], 3, seed=2)
    ids = torch.tensor([0, 5, 9], dtype=torch.int32).repeat(size[0], 1)
    for first, start in ((0, 0), (5, 1), (6, 2), (10, 3)):
        out = cpu.add_identity(x, y, ids, weights, first)
        torch.testing.assert_close(out, oracle.add_identity(x, y, ids, weights, first), **CLOSE)
        torch.testing.assert_close(out, x + weights[:, start:].sum(1, keepdim=True) * y, **CLOSE)
    if size[0]:
        with pytest.raises(ValueError, match="expected"):
            cpu.add_identity(x, y, ids[:, :2].contiguous(), weights, 0)


def test_a_row_alone_is_the_row_in_a_batch():
    x, y, gate = random(9, 77), random(9, 77, seed=1), random(9, 1, seed=2)
    mixed, gated, capped = cpu.mix(x, y, 0.3, 0.7, gate), cpu.apply_gate(x, y), cpu.softcap(x, 2.0)
    for i in range(9):
        row = slice(i, i + 1)
        assert torch.equal(cpu.mix(x[row], y[row], 0.3, 0.7, gate[row]), mixed[row])
        assert torch.equal(cpu.apply_gate(x[row], y[row]), gated[row])
        assert torch.equal(cpu.softcap(x[row], 2.0), capped[row])


def test_what_does_not_fit_is_refused():
    x = random(2, 6)
    for call in (
        lambda: cpu.mix(x, random(2, 5)),
        lambda: cpu.mix(x, x, gate=random(2, 2)),
        lambda: cpu.apply_gate(x, random(2, 4)),
        lambda: cpu.apply_gate(x, random(3, 6)),
        lambda: cpu.softcap(x.double(), 1.0),
    ):
        with pytest.raises(ValueError, match="expected|is not for|needs a contiguous"):
            call()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_bias(size):
    x, bias = random(*size), random(size[1], seed=1)
    assert torch.equal(cpu.add_bias(x, bias), oracle.add_bias(x, bias))
    with pytest.raises(ValueError, match="is not for"):
        cpu.add_bias(x, bias[:-1])

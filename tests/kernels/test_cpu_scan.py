"""The scan of numbers on their way into a model, against numpy."""

import numpy as np
import pytest
import torch

from moesaic.kernels.cpu.scan import scan
from moesaic.weights import scan as scans
from moesaic.weights.scan import scan_codes, scan_numbers

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 3, 7, 8, 63, 64, 1000, 8192, 20001]
pytestmark = pytest.mark.usefixtures("isa")


def drawn(count, dtype, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_norms_are_those_of_numpy(dtype, size):
    x = drawn(size, dtype)
    found = scan(x)
    assert (found.nonfinite, found.first, found.blank) == (0, -1, 0)
    assert found.squares == pytest.approx(np.square(x.double().numpy()).sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_every_number_that_is_none_is_found_wherever_it_is(dtype, size, wrong):
    for first in sorted({0, size // 2, size - 1}):
        x = drawn(size, dtype)
        x[first] = x[-1] = wrong
        found = scan(x)
        assert found.nonfinite == len({first, size - 1}) and found.first == first
        rest = np.square(x.double().numpy()[np.isfinite(x.double().numpy())]).sum()
        assert found.squares == pytest.approx(rest, rel=1e-5, abs=1e-12)


def test_large_numbers_are_not_taken_for_infinities():
    x = torch.full((100,), 1e30)
    assert scan(x).nonfinite == 0 and scan(x).squares == pytest.approx(1e62, rel=1e-6)
    assert scan(x.bfloat16()).nonfinite == 0
    assert scan(torch.full((100,), 65504.0, dtype=torch.float16)).nonfinite == 0


@pytest.mark.parametrize("size", SIZES)
def test_one_bit_more_or_a_swap_is_another_hash(size):
    x = drawn(size, torch.bfloat16)
    seen = {scan(x).hash}
    assert scan(x.clone()).hash in seen
    bits = x.view(torch.int16)
    places = range(size) if size <= 64 else range(0, size, size // 64)
    for place in places:
        for bit in (0, 7, 15):
            other = bits.clone()
            other[place] ^= -(1 << 15) if bit == 15 else 1 << bit
            seen.add(scan(other.view(torch.bfloat16)).hash)
    assert len(seen) == 1 + 3 * len(places)
    if size > 64:  # signs of words that share a lane; stripes in another order; more zeros behind
        both = bits.clone()
        both[3] ^= -(1 << 15)
        both[35] ^= -(1 << 15)
        swapped = torch.cat((x[32:64], x[:32], x[64:]))
        seen |= {scan(t).hash for t in (both.view(torch.bfloat16), swapped, torch.cat((x, torch.zeros(32).bfloat16())))}
        assert len(seen) == 4 + 3 * len(places)
    assert scan(x[: size - 1]).hash not in seen


def test_blank_is_every_bit():
    for size in SIZES:
        x = torch.zeros(size)
        assert scan(x).blank == 1
        x[-1] = 1e-40
        assert scan(x).blank == 0


def test_torch_finds_the_same_without_a_library(monkeypatch):
    x = drawn(20001, torch.bfloat16)
    x[77], x[9999] = float("nan"), float("inf")
    ours = [scan_numbers(x), scan_numbers(torch.zeros(5)), scan_numbers(torch.arange(9, dtype=torch.uint8))]

    def unavailable(tensor):
        raise scans.Unavailable("not built")

    monkeypatch.setattr(scans, "scan", unavailable)
    theirs = [scan_numbers(x), scan_numbers(torch.zeros(5)), scan_numbers(torch.arange(9, dtype=torch.uint8))]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.nonfinite, one.first, one.blank) == (other.nonfinite, other.first, other.blank)
        assert one.squares == pytest.approx(other.squares, rel=1e-5, nan_ok=True)
    assert scan_numbers(x.double()).first == 77 and scan_numbers(x[:70].double()).nonfinite == 0
    assert scan_numbers(x.clone()).digest == theirs[0].digest != scan_numbers(x[1:]).digest


def test_pieces_join_to_the_whole():
    x = drawn(300, torch.float32)
    x[200] = float("nan")
    one, two, three = (scan_numbers(x[100 * i : 100 * i + 100]) for i in range(3))
    whole = one.then(two, 100).then(three, 200)
    assert (whole.nonfinite, whole.first, whole.blank) == (1, 200, False)
    assert whole.squares == pytest.approx(scan_numbers(x).squares, rel=1e-6)
    assert one.then(two, 100).digest != two.then(one, 100).digest


def test_scales_are_what_can_be_wrong_with_codes():
    codes, scales, offsets = torch.ones(4, 64, dtype=torch.uint8), torch.ones(4, 2), torch.zeros(4, 2)
    sound = scan_codes(codes, scales, offsets)
    assert (sound.nonfinite, sound.blank) == (0, False) and np.isnan(sound.squares)
    assert scan_codes(codes, torch.zeros(4, 2), offsets).blank
    offsets[2, 1] = float("inf")
    assert (scan_codes(codes, scales, offsets).nonfinite, scan_codes(codes, scales, offsets).first) == (1, 2 * 64 + 32)
    codes[3, 63] = 2
    assert scan_codes(codes, scales, None).digest != scan_codes(torch.ones_like(codes), scales, None).digest

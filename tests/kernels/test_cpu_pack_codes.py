"""Codes of a checkpoint in packed matrices: what they stand for is what was stored, but for scales in bf16; and mxfp4,
against the numbers that the OCP Microscaling Formats give."""

import itertools

import numpy as np
import pytest
import torch

from moesaic.core.errors import ConfigError
from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.packed import PackedMatrix

MXFP4 = WeightFormat("mxfp4")
FORMATS = [
    *(WeightFormat(*each) for each in itertools.product(("w8", "w4"), (0, 32, 64, 128), (False, True))),
    *(WeightFormat("w8a8", group) for group in (0, 32, 128)),
    MXFP4,
]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
pytestmark = pytest.mark.usefixtures("isa")


def stored(rows, cols, format, seed=0):
    """Codes, scales and offsets (or None) as a checkpoint may have them."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-cols // (format.group or cols))
    if format.kind in ("w4", "mxfp4"):
        codes = torch.randint(0, 16, (rows, cols), generator=generator).to(torch.uint8)
    else:
        codes = torch.randint(-128, 128, (rows, cols), generator=generator).to(torch.int8)
    if format.kind == "mxfp4":
        return codes, torch.exp2(torch.randint(-20, 10, (rows, groups), generator=generator).float()), None
    scales = (torch.rand(rows, groups, generator=generator) * 0.01 + 0.001).half().float()
    offsets = torch.randn(rows, groups, generator=generator) * 0.02 if format.offsets else None
    return codes, scales, offsets


def meant(codes, scales, offsets, format):
    """The weights in float64."""
    cols = codes.shape[1]
    spread = lambda t: t.double().repeat_interleave(format.group or cols, 1)[:, :cols]  # noqa: E731
    if format.kind == "mxfp4":
        numbers = E2M1.double()[codes.long()]
    else:
        numbers = codes.double() - (8 if format.kind == "w4" else 0)
    return spread(scales) * numbers + (0 if offsets is None else spread(offsets))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("rows, cols", [(3, 17), (70, 200), (64, 384)])
def test_codes_stand_for_what_was_stored(format, rows, cols):
    codes, scales, offsets = stored(rows, cols, format)
    matrix = PackedMatrix.empty(rows, cols, format)
    matrix.sink().fill_codes(codes, scales, offsets)
    rounded = [None if each is None else each.bfloat16().float() for each in (scales, offsets)]
    assert torch.equal(matrix.unpack().double(), meant(codes, *rounded, format).float().double())
    error = (matrix.unpack() - meant(codes, scales, offsets, format)).norm()
    assert error <= 0.002 * meant(codes, scales, offsets, format).norm()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_rows_arrive_in_any_pieces_over_whatever_was_there(format, gated):
    rows, cols = 150, 96
    codes, scales, offsets = stored(rows, cols, format)
    some = lambda start, stop: [None if t is None else t[start:stop] for t in (codes, scales, offsets)]  # noqa: E731
    whole, pieces = (PackedMatrix.empty(rows, cols, format, gated) for _ in range(2))
    whole.data.zero_()
    pieces.data.fill_(0x5A)
    half = rows // 2 if gated else rows
    for part in range(2 if gated else 1):
        sink = [lambda m: m.gate_sink(), lambda m: m.up_sink()][part] if gated else lambda m: m.sink()
        sink(whole).fill_codes(*some(part * half, part * half + half))
        for start, stop in ((37, half), (0, 3), (3, 37)):
            sink(pieces).rows(start, stop).fill_codes(*some(part * half + start, part * half + stop), alone=True)
    assert torch.equal(pieces.data, whole.data)
    if format.kind in ("w8", "w8a8") and not gated:  # they lie where quantised floats do
        floats = PackedMatrix.of(whole.unpack(), format).unpack()
        assert (floats - whole.unpack()).norm() < 0.01 * whole.unpack().norm()


def test_codes_of_another_shape_or_kind_are_refused():
    codes, scales, offsets = stored(8, 64, WeightFormat("w4", 32, True))
    sink = PackedMatrix.empty(8, 64, WeightFormat("w4", 32, True)).sink()
    plain = PackedMatrix.empty(8, 64, WeightFormat("bf16")).sink()
    for wrong in (
        lambda: sink.fill_codes(codes, scales),
        lambda: sink.fill_codes(codes[:7], scales, offsets),
        lambda: sink.fill_codes(codes, scales[:, :1], offsets[:, :1]),
        lambda: sink.fill_codes(codes.int(), scales, offsets),
        lambda: sink.fill_codes(codes.T.contiguous().T, scales, offsets),
        lambda: sink.fill_codes(codes, scales.half(), offsets),
        lambda: plain.fill_codes(codes, scales),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_every_number_of_mxfp4_at_every_scale():
    """All 16 codes under all 255 exponents, of which the least and most are beyond what bf16 normalises."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(255, 2)
    scales = torch.tensor(np.exp2(np.arange(-127, 128, dtype=np.float64)).astype(np.float32)).unsqueeze(1)
    matrix = PackedMatrix.empty(255, 32, MXFP4)
    matrix.sink().fill_codes(codes, scales)
    with np.errstate(over="ignore"):  # 6 times the largest scale
        wanted = (E2M1.double().repeat(2) * scales.double()).numpy().astype(np.float32)
    assert (matrix.unpack().numpy() == wanted).all()


def test_floats_become_the_nearest_numbers_of_mxfp4():
    """OCP Microscaling Formats 1.0, section 6.3: by a search over all numbers, ties to the even code."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 128, generator=generator) * torch.logspace(-6, 6, 40).unsqueeze(1)
    x[0], x[1, :64], x[2, 32:] = 0, 0, -0.0
    x[3, :32] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0]).repeat(4)  # ties
    x[3, 1::2] *= -1
    groups = x.double().reshape(-1, 32)
    scale = torch.exp2(torch.floor(torch.log2(groups.abs().amax(1, keepdim=True).clamp(min=1e-30))) - 2)
    distance = (groups.abs().unsqueeze(2) / scale.unsqueeze(2) - E2M1[:8]).abs()
    even = distance + torch.arange(8) % 2 * 1e-12
    wanted = E2M1.double()[even.argmin(2)] * scale * groups.sign()
    assert torch.equal(PackedMatrix.of(x, MXFP4).unpack().double(), wanted.reshape(x.shape))


def test_numbers_that_are_none_show():
    x = torch.randn(3, 64)
    x[1, 7], x[2, 40] = float("nan"), float("-inf")
    read = PackedMatrix.of(x, MXFP4).unpack()
    assert read[0].isfinite().all() and read[1, 7].isnan() and read[2, 40].isnan()


def test_mxfp4_has_one_group_size_and_no_offsets():
    assert WeightFormat("mxfp4", 128) == MXFP4 and MXFP4.group == 32
    assert str(MXFP4) == "mxfp4 in groups of 32"
    with pytest.raises(ConfigError):
        WeightFormat("mxfp4", 32, True)

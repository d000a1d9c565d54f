"""Packed matrices: their bytes, read by a decoder of its own that follows the description of the format and nothing
else, and the quantiser, against rounding to nearest and against the best that a search without hurry finds."""

import itertools
import mmap

import numpy as np
import pytest
import torch

from moesaic.core.errors import ConfigError
from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.arena import PAGE, Arena, allocate
from moesaic.kernels.cpu.packed import PackedMatrix, packed_bytes

FLOATS = [WeightFormat(kind) for kind in ("f32", "f16", "bf16")]
CODES = [
    WeightFormat(kind, group, offsets)
    for kind, group, offsets in itertools.product(("w8", "w4", "w8a8"), (0, 32, 64, 128), (False, True))
    if not (offsets and kind == "w8a8")
]
ASYMMETRIC = WeightFormat("w4", 128, True)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
pytestmark = pytest.mark.usefixtures("isa")


def weights(rows, cols, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, cols, generator=generator) * 0.05 + 0.003).to(dtype)


# ---- an independent reading of the format ----------------------------------------------------------------------------


def bf16(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def decode_group(data, format, size, quads):
    """(codes [32, size] with w4's 8 taken off, scales [32], offsets [32], bytes read) of the group at data[0]."""
    if format.kind == "w4":
        words = data[: size * 16].view(np.uint16).reshape(size // 8, 32, 2)
        codes = np.empty((32, size), np.int32)
        for i, j, b in itertools.product(range(size // 8), range(4), range(2)):
            codes[:, 8 * i + 2 * j + b] = (words[i, :, b] >> (4 * j) & 15).astype(np.int32) - 8
        at = size * 16
    else:
        run = 4 if quads else 2
        codes = data[: size * 32].view(np.int8).reshape(size // run, 32, run).transpose(1, 0, 2).reshape(32, size)
        codes = codes.astype(np.int32)
        at = size * 32
    scales, at = bf16(data[at : at + 64].view(np.uint16)), at + 64
    offsets = np.zeros(32, np.float32)
    if format.offsets:
        offsets, at = bf16(data[at : at + 64].view(np.uint16)), at + 64
    if quads:
        sums, at = data[at : at + 128].view(np.int32), at + 128
        assert (sums == codes.sum(1)).all()
    return codes, scales, offsets, at


def decode_panel(data, cols, format, quads):
    """fp32 `[32, cols]`, and the bytes read."""
    if format.kind == "f32":
        return data[: cols * 128].view(np.float32).reshape(cols, 32).T, cols * 128
    if not format.quantised:
        padded = cols + cols % 2
        halves = data[: padded * 64].view(np.uint16).reshape(padded // 2, 32, 2).transpose(1, 0, 2).reshape(32, padded)
        assert not halves[:, cols:].any()
        return (bf16(halves) if format.kind == "bf16" else halves.view(np.float16))[:, :cols], padded * 64
    size = format.group or -(-cols // 8) * 8
    pieces, at = [], 0
    for first in range(0, cols, size):
        codes, scales, offsets, used = decode_group(data[at:], format, size, quads)
        if format.kind != "w4":
            assert not codes[:, cols - first :].any()
        pieces.append(scales[:, None] * codes.astype(np.float32) + offsets[:, None])
        at += used
    return np.concatenate(pieces, 1)[:, :cols], at


def decode(matrix, quads):
    """fp32 `[rows, cols]` of a packed matrix; every byte is accounted for, and what pads it is zero."""
    data, at, panels = matrix.data.numpy(), 0, []
    while at < len(data):
        panel, used = decode_panel(data[at:], matrix.cols, matrix.format, quads)
        panels.append(panel)
        at += used
    assert at == len(data)
    everything = np.stack(panels)  # [panels, 32, cols]
    parts = [everything[:, :16], everything[:, 16:]] if matrix.gated else [everything]
    rows = matrix.rows // len(parts)
    parts = [part.reshape(-1, matrix.cols) for part in parts]
    assert not any(part[rows:].any() for part in parts)
    return np.concatenate([part[:rows] for part in parts])


def lies_in_quads(isa, format):
    return format.kind == "w8a8" and isa == "avx512_bf16"


# ---- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FLOATS + CODES, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_bytes_are_what_the_format_says(format, gated, isa):
    for rows, cols in ((2, 1), (34, 17), (70, 200), (128, 384)):
        weight = weights(rows, cols)
        matrix = PackedMatrix.of(weight, format, gated)
        read = decode(matrix, lies_in_quads(isa, format))
        assert (matrix.unpack().numpy() == read).all()
        if not format.quantised:
            assert (read == weight.to(DTYPES[format.kind]).float().numpy()).all()
            continue
        # A code at most half a step away, where nothing was clipped: steps are not wider than for plain rounding.
        size = format.group or cols
        for first in range(0, cols, size):
            group = weight[:, first : first + size]
            error = group - torch.from_numpy(read[:, first : first + size])
            span = group.abs().amax(1) / (7 if format.kind == "w4" else 127)
            rms = error.square().mean(1).sqrt()
            assert (rms <= 0.5 * span + 0.005 * group.abs().amax(1)).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_floating_dtype_goes_into_any_kind(kind, dtype):
    weight = weights(40, 77, dtype=dtype)
    packed = PackedMatrix.of(weight, WeightFormat(kind)).unpack()
    assert torch.equal(packed, weight.to(DTYPES[kind]).float())


@pytest.mark.parametrize("format", [WeightFormat("bf16"), WeightFormat("w8", 32), ASYMMETRIC], ids=str)
def test_rows_arrive_in_any_pieces(format):
    weight = weights(150, 96)
    whole = PackedMatrix.of(weight, format)
    pieces = PackedMatrix.empty(150, 96, format)
    for first, stop in ((77, 150), (0, 3), (3, 64), (64, 77)):
        pieces.sink(first, stop - first).fill(weight[first:stop])
    assert torch.equal(pieces.data, whole.data)
    assert torch.equal(pieces.unpack(70, 9), whole.unpack()[70:79])
    assert torch.equal(pieces.sink(3, 61).unpack(), whole.unpack()[3:64])


def test_what_was_there_before_does_not_show():
    """Slots are filled again and again: padding is written too."""
    for format, gated in itertools.product([*FLOATS, WeightFormat("w8", 32), WeightFormat("w8a8", 0)], (False, True)):
        clean = PackedMatrix.of(weights(38, 45), format, gated)
        used = PackedMatrix(38, 45, format, gated, torch.full((clean.nbytes,), 0x5A, dtype=torch.uint8))
        for sink, rows in (
            ((used.gate_sink(), slice(0, 19)), (used.up_sink(), slice(19, 38)))
            if gated
            else ((used.sink(), slice(0, 38)),)
        ):
            sink.fill(weights(38, 45)[rows])
        assert torch.equal(clean.data, used.data)


def test_strided_sources_and_single_columns():
    wide = weights(64, 300)
    for view in (wide[:, 7:104], wide.T, wide[::3], wide[:, :1], wide[:1]):
        assert torch.equal(PackedMatrix.of(view, WeightFormat("f32")).unpack(), view)


def test_every_number_of_threads_packs_the_same():
    weight, threads = weights(300, 256), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = PackedMatrix.of(weight, ASYMMETRIC)
        torch.set_num_threads(3)
        assert torch.equal(PackedMatrix.of(weight, ASYMMETRIC).data, alone.data)
    finally:
        torch.set_num_threads(threads)


# ---- the quantiser ---------------------------------------------------------------------------------------------------


def round_to_nearest(x, low, high, symmetric):
    """The usual rounding of groups `[n, group]`, with scales that are not even rounded to bf16."""
    if symmetric:
        scale = x.abs().amax(1, keepdim=True) / high
        return scale * (x / scale).round().clamp(low, high)
    least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (most - least) / (high - low)
    return scale * ((x - least) / scale).round() + least


def drawn(kind):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 512, generator=generator)
    if kind == "heavy tails":  # Student's t with 4 degrees of freedom
        x = x / torch.randn(4, 256, 512, generator=generator).square().mean(0).sqrt()
    if kind == "outlier columns":
        x[:, ::97] *= 8
    return x


def relative_error(x, y):
    return ((x - y).norm() / x.norm()).item()


@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "outlier columns"])
def test_four_bits_are_better_than_rounding_to_nearest(kind):
    x = drawn(kind)
    groups = x.reshape(-1, 128)
    ours = relative_error(x, PackedMatrix.of(x, ASYMMETRIC).unpack())
    assert ours < 0.94 * relative_error(groups, round_to_nearest(groups, -8, 7, symmetric=False))
    assert ours < 0.80 * relative_error(groups, round_to_nearest(groups, -8, 7, symmetric=True))
    without = relative_error(x, PackedMatrix.of(x, WeightFormat("w4", 128)).unpack())
    assert ours < without < 0.93 * relative_error(groups, round_to_nearest(groups, -8, 7, symmetric=True))


@pytest.mark.parametrize("kind", ["w8", "w8a8"])
@pytest.mark.parametrize("group", [0, 32, 128])
def test_eight_bits_are_no_worse_than_rounding_to_nearest(kind, group):
    x = drawn("heavy tails")
    groups = x.reshape(-1, group or 512)
    ours = relative_error(x, PackedMatrix.of(x, WeightFormat(kind, group)).unpack())
    assert ours <= 1.001 * relative_error(groups, round_to_nearest(groups, -127, 127, symmetric=True))


def test_codes_are_the_nearest_and_lines_the_best_near_them():
    """A fixed point: with the scale and offset that were found no other code is nearer, and among lines a little off
    none does better by more than bf16's rounding."""
    x = drawn("gaussian")[:32, :128].numpy()
    matrix = PackedMatrix.of(torch.from_numpy(x), ASYMMETRIC)
    codes, scales, offsets, _ = decode_group(matrix.data.numpy(), ASYMMETRIC, 128, False)
    s, o = scales[:, None].astype(np.float64), offsets[:, None].astype(np.float64)
    nearest = np.clip(np.rint((x - o) / s), -8, 7)
    assert (np.abs(nearest - codes) * np.abs(np.abs((x - o) / s - codes) - 0.5) < 1e-4).all()  # ties aside
    error = np.square(s * codes + o - x).sum(1)
    for ds, do in itertools.product((0.98, 1.0, 1.02), (-0.1, 0.0, 0.1)):
        t, p = s * ds, o + do * s
        assert (error <= 1.02 * np.square(t * np.clip(np.rint((x - p) / t), -8, 7) + p - x).sum(1)).mean() > 0.9


@pytest.mark.parametrize("format", CODES, ids=str)
def test_hard_groups(format):
    """Zeros, one value, one outlier, tiny, huge: exact where the format can be, close everywhere."""
    cols = 256
    rows = torch.zeros(8, cols)
    rows[1] = 0.25
    rows[2, 5] = -3.0
    rows[3] = 1e-38
    rows[4] = torch.linspace(-1e15, 1e15, cols)
    rows[5] = torch.where(torch.arange(cols) % 2 == 0, 1.0, -1.0)
    rows[6] = 5.0 + torch.linspace(0, 0.01, cols)
    rows[7, 200:] = torch.linspace(0, 1, 56)
    read = PackedMatrix.of(rows, format).unpack()
    assert torch.equal(read[0], rows[0])
    step = rows.abs().amax(1) / (7 if format.kind == "w4" else 127)
    assert ((read - rows).abs().amax(1) <= 1.01 * step + 1e-36).all()
    if format.offsets:
        assert torch.equal(read[1], rows[1])
    # -3 is code -8, exactly; eight bits round the scale
    assert torch.allclose(read[2], rows[2], rtol=0.01, atol=0 if not format.offsets else 0.21)


def test_numbers_that_are_none_show():
    rows = weights(3, 64)
    rows[1, 7], rows[2, 40] = float("nan"), float("inf")
    for format in CODES:
        read = PackedMatrix.of(rows, format).unpack()
        assert torch.isfinite(read[0]).all() and read[1, 7].isnan() and read[2, 40].isnan()


def test_instruction_sets_agree_to_the_bit(isa, monkeypatch):
    """(Where bytes lie differs for w8a8; which they are does not.)"""
    from moesaic.kernels.cpu.calls import Kernel

    weight = drawn("heavy tails")[:48, :300].bfloat16()
    here = [PackedMatrix.of(weight, format).unpack() for format in CODES]
    monkeypatch.setenv("MOESAIC_ISA", "portable")
    Kernel.forget()
    for format, ours in zip(CODES, here, strict=True):
        assert torch.equal(PackedMatrix.of(weight, format).unpack(), ours)


# ---- sizes, sinks and memory -----------------------------------------------------------------------------------------


def test_formats_say_what_they_are():
    assert str(WeightFormat("bf16")) == "bf16"
    assert str(WeightFormat("w8", 0)) == "w8 by row"
    assert str(ASYMMETRIC) == "w4 in groups of 128 with offsets"
    assert WeightFormat("bf16", 32) == WeightFormat("bf16")
    for bad in (("int4", 128, False), ("w8", 48, False), ("w8a8", 128, True), ("f16", 0, True)):
        with pytest.raises(ConfigError):
            WeightFormat(*bad)


def test_a_matrix_refuses_what_does_not_fit():
    format = WeightFormat("w8", 32)
    assert packed_bytes(33, 40, format) == 2 * 2 * (32 * 32 + 64)
    matrix, gated = PackedMatrix.empty(33, 40, format), PackedMatrix.empty(34, 40, format, gated=True)
    for wrong in (
        lambda: matrix.sink(30, 4),
        lambda: matrix.gate_sink(),
        lambda: gated.sink(),
        lambda: gated.up_sink().fill(torch.zeros(16, 40)),
        lambda: matrix.unpack(-1, 2),
        lambda: packed_bytes(33, 40, format, gated=True),
        lambda: packed_bytes(0, 40, format),
        lambda: PackedMatrix(33, 40, format, False, torch.zeros(7, dtype=torch.uint8)),
        lambda: PackedMatrix(33, 40, format, False, torch.zeros(matrix.nbytes + 1, dtype=torch.uint8)[1:]),
    ):
        with pytest.raises(ValueError):
            wrong()
    matrix.sink(3, 0).fill(torch.zeros(0, 40))


def test_an_arena_hands_out_aligned_zeros():
    arena = Arena(5 << 20)
    first, second, third = arena.take(100), arena.take(4097, PAGE), arena.take(1 << 20, PAGE)
    assert first.data_ptr() % (2 << 20) == 0
    assert second.data_ptr() == first.data_ptr() + PAGE and third.data_ptr() == first.data_ptr() + 3 * PAGE
    assert not arena.data.any() and arena.used == 3 * PAGE + (1 << 20)
    with pytest.raises(MemoryError):
        arena.take(4 << 20)
    matrix = PackedMatrix.empty(64, 64, WeightFormat("bf16"), allocator=arena.take)
    matrix.sink().fill(torch.ones(64, 64))
    assert arena.data[3 * PAGE + (1 << 20) :].any() and matrix.data.data_ptr() > third.data_ptr()


def test_memory_outlives_the_arena_and_small_sizes_work():
    part = Arena(3 << 20).take(10)
    part.fill_(7)
    assert part.sum() == 70
    assert allocate(0).numel() == 0 and allocate(1).numel() == 1 and allocate(1).data_ptr() % mmap.PAGESIZE == 0

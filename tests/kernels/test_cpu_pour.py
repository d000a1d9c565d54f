"""Reading, scanning and packing in one call: what each of the three gives alone."""

import errno
import os

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.kernels.cpu.pour import Rows, pour
from moesaic.kernels.cpu.scan import scan

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 1), (34, 5), (32, 64), (96, 257), (130, 1024)]
FORMATS = [WeightFormat(kind) for kind in ("f32", "f16", "bf16")] + [WeightFormat("w8", 32), WeightFormat("w4", 32)]


def drawn(shape, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])).to(dtype)


@pytest.fixture
def file(tmp_path):
    """A function: tensors in; a descriptor of their file and the offset of each out. (3 bytes before the first.)"""
    opened = []

    def write(*tensors):
        path, offsets = tmp_path / "file", []
        with open(path, "wb") as out:
            out.write(b"123")
            for tensor in tensors:
                offsets.append(out.tell())
                out.write(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1], offsets

    yield write
    for each in opened:
        os.close(each)


def same_scan(found, tensor):
    wanted = scan(tensor)
    names = [name for name, _ in wanted._fields_ if name not in ("data", "squares")]
    assert [getattr(found, name) for name in names] == [getattr(wanted, name) for name in names]
    assert found.squares == wanted.squares


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_many_matrices_in_one_call(dtype, format, file):
    weights = [drawn(shape, dtype) for shape in SHAPES]
    weights[2][3, 5] = float("inf")
    descriptor, offsets = file(*weights)
    matrices = [PackedMatrix.empty(*shape, format) for shape in SHAPES]
    places = zip(offsets, matrices, strict=True)
    found = pour([Rows(descriptor, offset, dtype, matrix.sink()) for offset, matrix in places])
    for weight, matrix, one in zip(weights, matrices, found, strict=True):
        assert torch.equal(matrix.data, PackedMatrix.of(weight, format).data)
        same_scan(one, weight)
    assert [one.nonfinite for one in found] == [0, 0, 1, 0, 0] and found[2].first == 3 * 64 + 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves_and_pieces_of_rows(dtype, file):
    gate, up = drawn((66, 48), dtype), drawn((66, 48), dtype) * 2
    descriptor, (first, second) = file(gate, up)
    matrix = PackedMatrix.empty(132, 48, WeightFormat("bf16"), gated=True)
    row = 48 * dtype.itemsize
    found = pour(
        [
            Rows(descriptor, second + 32 * row, dtype, matrix.up_sink().rows(32, 66)),
            Rows(descriptor, first, dtype, matrix.gate_sink()),
            Rows(descriptor, second, dtype, matrix.up_sink().rows(0, 32)),
        ]
    )
    assert torch.equal(matrix.data, PackedMatrix.of(torch.cat([gate, up]), WeightFormat("bf16"), gated=True).data)
    for one, part in zip(found, (up[32:], gate, up[:32]), strict=True):
        same_scan(one, part.contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_filled_as_they_are(dtype, file):
    wanted = [drawn(shape, dtype) for shape in ((5,), (3, 4, 5), (1,))]
    descriptor, offsets = file(*wanted)
    into = [torch.empty_like(tensor) for tensor in wanted]
    found = pour([Rows(descriptor, offset, dtype, tensor) for offset, tensor in zip(offsets, into, strict=True)])
    for tensor, one, was in zip(into, found, wanted, strict=True):
        assert torch.equal(tensor, was)
        same_scan(one, was)


def test_what_cannot_be_read_is_said_of_that_piece_alone(file):
    weight = drawn((32, 64), torch.bfloat16)
    descriptor, (offset,) = file(weight)
    matrices = [PackedMatrix.empty(32, 64, WeightFormat("bf16")) for _ in range(3)]
    short, whole, closed = pour(
        [
            Rows(descriptor, offset + 2, torch.bfloat16, matrices[0].sink()),
            Rows(descriptor, offset, torch.bfloat16, matrices[1].sink()),
            Rows(1 << 20, offset, torch.bfloat16, matrices[2].sink()),
        ]
    )
    assert isinstance(short, EOFError)
    assert isinstance(closed, OSError) and closed.errno == errno.EBADF
    same_scan(whole, weight)
    assert torch.equal(matrices[1].data, PackedMatrix.of(weight, WeightFormat("bf16")).data)


def test_a_tensor_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"contiguous torch.bfloat16"):
        pour([Rows(0, 0, torch.bfloat16, torch.empty(4))])

"""A packed matrix: what every product of this backend reads, and how weights get into it. Bytes: csrc/common/formats.h.

Loading fills it through sinks, a range of rows at a time, in whatever dtype they come; C++ converts, quantises and
packs them where they lie, so that no second copy of the weights is ever there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.arena import allocate
from moesaic.kernels.cpu.calls import FLOAT_KINDS, KINDS, Format, Kernel, Matrix, pointer
from moesaic.kernels.cpu.pack_arguments import MatrixBytesArgs, PackArgs, PackCodesArgs, PackVersionArgs, UnpackArgs

WHOLE, GATE, UP = 0, 1, 2


_pack, _pack_codes, _unpack = Kernel("pack"), Kernel("pack_codes"), Kernel("unpack")
_matrix_bytes, _pack_version = Kernel("matrix_bytes"), Kernel("pack_version")


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A weight `[rows, cols]` = `[outputs, inputs]` in panels of 32 outputs.

    Attributes:
        gated: rows are gate's, then up's, interleaved in the panels so that the activation fuses; `rows` is even.
        data: uint8 `[nbytes]`, contiguous, aligned to 64 bytes; may be part of an arena or of an expert's page.
    """

    rows: int
    cols: int
    format: WeightFormat
    gated: bool
    data: Tensor

    def __post_init__(self) -> None:
        wanted = packed_bytes(self.rows, self.cols, self.format, self.gated)
        data = self.data
        if data.dtype is not torch.uint8 or not data.is_contiguous() or data.numel() != wanted:
            raise ValueError(f"a packed matrix needs {wanted} contiguous bytes, got {data.dtype} {list(data.shape)}")
        if data.data_ptr() % 64:
            raise ValueError("a packed matrix must be aligned to 64 bytes")

    @classmethod
    def empty(
        cls,
        rows: int,
        cols: int,
        format: WeightFormat,
        gated: bool = False,
        allocator: Callable[[int], Tensor] = allocate,
    ) -> "PackedMatrix":
        """A matrix that is not filled yet, in `nbytes` that `allocator` gives (such as `Arena.take`)."""
        return cls(rows, cols, format, gated, allocator(packed_bytes(rows, cols, format, gated)))

    @classmethod
    def of(cls, weight: Tensor, format: WeightFormat, gated: bool = False) -> "PackedMatrix":
        """A row-major weight `[rows, cols]`, packed."""
        matrix = cls.empty(*weight.shape, format, gated)
        if gated:
            gate, up = weight.chunk(2)
            matrix.gate_sink().fill(gate)
            matrix.up_sink().fill(up)
        else:
            matrix.sink().fill(weight)
        return matrix

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)`."""
        return self.rows, self.cols

    @property
    def nbytes(self) -> int:
        """Bytes as packed."""
        return self.data.numel()

    @cached_property
    def struct(self) -> Matrix:
        """What C++ takes; good as long as this object lives."""
        return _struct(self.rows, self.cols, self.format, self.gated, self.data.data_ptr())

    def sink(self, first_row: int = 0, num_rows: int | None = None) -> "Sink":
        """Where some rows of a plain matrix are filled; by default all of them."""
        if self.gated:
            raise ValueError("a gated matrix is filled through gate_sink and up_sink")
        return Sink(self, WHOLE, first_row, self.rows - first_row if num_rows is None else num_rows)

    def gate_sink(self) -> "Sink":
        """Where gate's rows of a gated matrix are filled."""
        return self._half(GATE)

    def up_sink(self) -> "Sink":
        """Where up's rows of a gated matrix are filled."""
        return self._half(UP)

    def _half(self, part: int) -> "Sink":
        if not self.gated:
            raise ValueError("a plain matrix has no gate and up")
        return Sink(self, part, 0, self.rows // 2)

    def unpack(self, first_row: int = 0, num_rows: int | None = None) -> Tensor:
        """Rows as kernels understand them (dequantised): fp32 `[num_rows, cols]`; of a gated matrix gate's first."""
        num_rows = self.rows - first_row if num_rows is None else num_rows
        if first_row < 0 or num_rows < 0 or first_row + num_rows > self.rows:
            raise ValueError(f"rows {first_row}..{first_row + num_rows} of {self.rows}")
        out = torch.empty(num_rows, self.cols)
        _unpack(UnpackArgs(self.struct, out.data_ptr(), first_row, num_rows))
        return out


@dataclass(frozen=True, eq=False)
class Sink:
    """Some rows of a packed matrix, to be filled: what loading takes where it would take a tensor."""

    matrix: PackedMatrix
    part: int
    first_row: int
    num_rows: int

    def __post_init__(self) -> None:
        most = self.matrix.rows // (1 if self.part == WHOLE else 2)
        if self.first_row < 0 or self.num_rows < 0 or self.first_row + self.num_rows > most:
            raise ValueError(f"rows {self.first_row}..{self.first_row + self.num_rows} of {most}")

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)` of what is filled in."""
        return self.num_rows, self.matrix.cols

    @property
    def format(self) -> WeightFormat:
        """Of the matrix."""
        return self.matrix.format

    def fill(self, tensor: Tensor, alone: bool = False) -> None:
        """Pack `[rows, cols]` in any floating dtype, quantised as the matrix's format says.

        Args:
            alone: on the calling thread, because others fill sinks at the same time.
        """
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"a sink of {list(self.shape)} was given {list(tensor.shape)}")
        if tensor.dtype not in FLOAT_KINDS:
            tensor = tensor.float()
        if tensor.stride(1) != 1:
            tensor = tensor.contiguous()
        _pack(self.arguments(tensor.data_ptr(), tensor.stride(0), FLOAT_KINDS[tensor.dtype], alone))

    def arguments(self, source: int | None, stride: int, dtype: int, alone: bool = True) -> PackArgs:
        """What C++ is told: to pack rows in these elements at this address, so many of which lie between two rows."""
        place = self.part, self.first_row, self.num_rows
        return PackArgs(self.matrix.struct, source, stride, dtype, *place, alone)

    def fill_codes(self, codes: Tensor, scales: Tensor, offsets: Tensor | None = None, alone: bool = False) -> None:
        """Pack codes that are there already; only scales and offsets are rounded, to bf16.

        Args:
            codes: `[rows, cols]` bytes, as of `weights.codecs.codes.Codes`; a row's lie together.
            scales: `[rows, groups]` fp32.
            offsets: as the scales, where the matrix's format has them.
            alone: as of `fill`.

        Raises:
            ValueError: they are not of the matrix's format.
        """
        format = self.matrix.format
        groups = self.num_rows, -(-self.matrix.cols // (format.group or self.matrix.cols))
        shapes = [tuple(each.shape) for each in (scales, offsets) if each is not None]
        if tuple(codes.shape) != self.shape or shapes != [groups] * (1 + format.offsets) or not format.quantised:
            raise ValueError(
                f"a sink of {list(self.shape)}, {format}, was given codes {list(codes.shape)} and {shapes}"
            )
        if codes.element_size() != 1 or codes.stride(1) != 1:
            raise ValueError(f"codes must be bytes, a row's together; got {codes.dtype}, strides {codes.stride()}")
        given = codes.data_ptr(), pointer(scales), pointer(offsets), codes.stride(0)
        _pack_codes(PackCodesArgs(self.matrix.struct, *given, self.part, alone, self.first_row, self.num_rows))

    def rows(self, start: int, stop: int) -> "Sink":
        """The sink of rows [start, stop) of these."""
        if not 0 <= start <= stop <= self.num_rows:
            raise ValueError(f"rows {start}..{stop} of {self.num_rows}")
        return Sink(self.matrix, self.part, self.first_row + start, stop - start)

    def unpack(self) -> Tensor:
        """What is there now, dequantised: fp32 `[rows, cols]`."""
        first = self.first_row + (self.matrix.rows // 2 if self.part == UP else 0)
        return self.matrix.unpack(first, self.num_rows)

    def holds(self, tensor: Tensor) -> bool:
        """Whether filling in this tensor `[rows, cols]` would change nothing."""
        return torch.equal(self.unpack(), PackedMatrix.of(tensor, self.matrix.format).unpack())


@dataclass(frozen=True, eq=False)
class Both:
    """Two sinks that take the same weight: a table of embeddings, and the LM head in another format."""

    first: Sink
    second: Sink

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)` of what is filled in."""
        return self.first.shape

    def rows(self, start: int, stop: int) -> "Both":
        """The sinks of rows [start, stop) of these."""
        return Both(self.first.rows(start, stop), self.second.rows(start, stop))

    def fill(self, tensor: Tensor, alone: bool = False) -> None:
        """Fill both."""
        self.first.fill(tensor, alone)
        self.second.fill(tensor, alone)

    def holds(self, tensor: Tensor) -> bool:
        """Whether filling in this tensor would change nothing in either."""
        return self.first.holds(tensor) and self.second.holds(tensor)


@dataclass(frozen=True, eq=False)
class Split:
    """A weight whose first rows are, transposed, one matrix, and whose others are a second one; it is filled whole.

    Attributes:
        first: of the first rows' transpose.
    """

    first: Sink
    second: Sink

    whole = True

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)` of what is filled in."""
        return self.first.shape[1] + self.second.shape[0], self.second.shape[1]

    def rows(self, start: int, stop: int) -> "Split":
        """Itself: [start, stop) must be all rows."""
        if (start, stop) != (0, self.shape[0]):
            raise ValueError(f"rows {start}..{stop} of {self.shape[0]} that are filled at once")
        return self

    def fill(self, tensor: Tensor, alone: bool = False) -> None:
        """Fill both."""
        size = self.first.shape[1]
        self.first.fill(tensor[:size].T.contiguous(), alone)
        self.second.fill(tensor[size:], alone)

    def holds(self, tensor: Tensor) -> bool:
        """Whether filling in this tensor would change nothing in either."""
        size = self.first.shape[1]
        return self.first.holds(tensor[:size].T) and self.second.holds(tensor[size:])


def packed_bytes(rows: int, cols: int, format: WeightFormat, gated: bool = False) -> int:
    """Bytes of a packed matrix in the library in use.

    Raises:
        ValueError: the shape is not one of a matrix.
    """
    if rows < 1 or cols < 1 or (gated and rows % 2):
        raise ValueError(f"no matrix can be [{rows}, {cols}]{' and gated' if gated else ''}")
    arguments = MatrixBytesArgs(_struct(rows, cols, format, gated, None))
    _matrix_bytes(arguments)
    return arguments.bytes


def pack_version() -> tuple[int, int]:
    """Of where bytes lie, and of the codes that weights become: in the library in use."""
    arguments = PackVersionArgs()
    _pack_version(arguments)
    return arguments.layout, arguments.quantiser


def _struct(rows: int, cols: int, format: WeightFormat, gated: bool, data: int | None) -> Matrix:
    return Matrix(data, rows, cols, Format(KINDS[format.kind], format.group, format.offsets, gated))

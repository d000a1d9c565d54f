"""From a source to where its tensors are kept: pieces of rows, each read, scanned and packed by one thread while it
lies in the cache. What is quantised already goes into packed matrices of the same format with its own codes."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from moesaic.core.formats import WeightFormat
from moesaic.weights.codecs.codes import is_coded
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.plan import Copy
from moesaic.weights.rules import Index, View
from moesaic.weights.scan import Scan, scan_codes, scan_numbers
from moesaic.weights.sources import Source

STAGING_BYTES = 4 << 20  # small enough that what was just read is packed from the cache
PIECE_ROWS = 64  # pieces have a multiple of these many rows, so that panels are packed whole


class Sink(Protocol):
    """Where a weight goes that is not kept as a tensor, such as some rows of a packed matrix.

    One with an attribute `whole` that is true must be filled at once, not some rows at a time.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)` of what is to be filled in."""

    def rows(self, start: int, stop: int) -> "Sink":
        """The sink of some of its rows."""

    def fill(self, tensor: torch.Tensor, alone: bool = False) -> None:
        """Take `[rows, cols]` in any floating dtype; `alone`: on this thread, for others are busy too."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether filling in this tensor would change nothing."""


class CodedSink(Protocol):
    """A sink that takes codes too; other sinks of `[rows, cols]` lack these."""

    @property
    def format(self) -> WeightFormat:
        """Of the matrix."""

    def fill_codes(
        self, codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None = None, alone: bool = False
    ) -> None:
        """Take codes of its format."""


Target: TypeAlias = torch.Tensor | Sink


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the tensor that `copy` names, and where they go.

    Attributes:
        coded: they go there as the codes that the source has.
    """

    copy: Copy
    into: Target
    start: int
    stop: int
    coded: bool = False


def pieces_of(source: Source, copy: Copy, into: Target) -> Iterator[Piece]:
    """A copy in pieces that the staging buffer holds; what is a view of something is one."""
    coded = stored_format(source, copy.source, copy.index, copy.view) == getattr(into, "format", "none")
    if copy.view is not None or (isinstance(into, torch.Tensor) and into.dim() < 2):
        yield Piece(copy, into, 0, math.prod(into.shape[:1]), coded)
        return
    itemsize = 1 if coded else FLOAT_DTYPES[source.tensors[copy.source].dtype].itemsize
    for start, stop in row_ranges(into, itemsize):
        yield Piece(copy, into, start, stop, coded)


def stored_format(source: Source, name: str, index: Index, view: View | None) -> WeightFormat | None:
    """The format in which a part of a tensor can be kept with the source's own codes; None where only floats can be."""
    if not is_coded(source):
        return None
    transposed = view is not None and view.transposed
    if source.transposed(name) != transposed or (transposed and any(isinstance(i, slice) for i in index)):
        return None
    return source.format_of(name)


def row_ranges(into: Target, itemsize: int) -> Iterator[tuple[int, int]]:
    """Rows of a tensor in pieces that the staging buffer holds."""
    shape = tuple(into.shape)
    row_bytes = max(1, math.prod(shape[1:]) * itemsize)
    step = max(1, STAGING_BYTES // row_bytes // PIECE_ROWS) * PIECE_ROWS
    if getattr(into, "whole", False):
        step = shape[0]
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class Staging:
    """Buffers between a source and sinks, one a thread: rows are read into it in the source's own dtype."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._local = threading.local()

    def pour(self, piece: Piece) -> Scan:
        """Read a piece to where it goes; what a look at it shows."""
        copy, into = piece.copy, piece.into
        if piece.coded:
            return self._pour_codes(piece)
        if copy.view is not None:
            return self._pour_view(copy, copy.view, into)
        if isinstance(into, torch.Tensor):
            whole = piece.stop - piece.start == math.prod(into.shape[:1])
            rows = into if whole else into[piece.start : piece.stop]
            self._source.read(copy.source, copy.index if whole else rows_of(copy.index, piece.start, piece.stop), rows)
        else:
            rows = self.read(copy, piece.start, piece.stop, into.shape)
            into.rows(piece.start, piece.stop).fill(rows, alone=True)
        return scan_numbers(rows)

    def _pour_codes(self, piece: Piece) -> Scan:
        copy, source = piece.copy, self._source
        assert is_coded(source)
        index = copy.index if copy.view is not None else rows_of(copy.index, piece.start, piece.stop)
        codes = source.read_codes(copy.source, index)
        if copy.view is not None:
            codes = codes.rows(copy.view.rows)
        offsets = None if codes.offsets is None else codes.offsets.contiguous()
        parts = codes.codes.contiguous(), codes.scales.contiguous(), offsets
        rows: CodedSink = piece.into.rows(piece.start, piece.stop)  # type: ignore[assignment]
        rows.fill_codes(*parts, alone=True)
        return scan_codes(*parts)

    def _pour_view(self, copy: Copy, view: View, into: Target) -> Scan:
        """Read a part whole, and take of it what is wanted."""
        dtype = FLOAT_DTYPES[self._source.tensors[copy.source].dtype]
        part = self._take(math.prod(view.shape) * dtype.itemsize).view(dtype).view(view.shape)
        self._source.read(copy.source, copy.index, part)
        wanted = view.take(part).contiguous()
        if isinstance(into, torch.Tensor):
            into.copy_(wanted)
        else:
            into.fill(wanted, alone=True)
        return scan_numbers(wanted)

    def read(self, copy: Copy, start: int, stop: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Rows [start, stop) of what `copy` names, good until this thread reads the next."""
        dtype = FLOAT_DTYPES[self._source.tensors[copy.source].dtype]
        count = (stop - start) * math.prod(shape[1:])
        rows = self._take(count * dtype.itemsize).view(dtype).view(stop - start, *shape[1:])
        self._source.read(copy.source, rows_of(copy.index, start, stop), rows)
        return rows

    def _take(self, nbytes: int) -> torch.Tensor:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._local.buffer = torch.empty(nbytes, dtype=torch.uint8)
        return buffer[:nbytes]


def rows_of(index: Index, start: int, stop: int) -> Index:
    """Rows [start, stop) of the part of a tensor that `index` (ints, then at most one slice) names."""
    if index and isinstance(index[-1], slice):
        first = int(index[-1].start)
        return (*index[:-1], slice(first + start, first + stop))
    return (*index, slice(start, stop))


def bytes_read(source: Source, piece: Piece) -> int:
    """Of the floats that a piece is read as, or stands for."""
    view, shape = piece.copy.view, tuple(piece.into.shape)
    itemsize: int = FLOAT_DTYPES[source.tensors[piece.copy.source].dtype].itemsize
    count = math.prod(view.shape if view is not None else (piece.stop - piece.start, *shape[1:]))
    return count * itemsize

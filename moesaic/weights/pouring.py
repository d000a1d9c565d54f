"""Filling a model by all threads: what lies in files as plain numbers in C++ alone, which reads, scans and packs many
tensors in a call; the rest piece by piece from Python."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import torch

from moesaic.core.errors import CheckpointError
from moesaic.core.files import open_regular
from moesaic.kernels.cpu.calls import FLOAT_KINDS
from moesaic.kernels.cpu.library import Unavailable, library
from moesaic.kernels.cpu.packed import Sink
from moesaic.kernels.cpu.pour import Rows, pour
from moesaic.weights.containers.stored import StoredInfo, part_range
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.rules import Index
from moesaic.weights.scan import Scan, scan_of
from moesaic.weights.sources import FilesSource, Source
from moesaic.weights.staging import Piece, Staging, rows_of

BATCH_BYTES = 128 << 20  # poured in one call; between two the bar moves, and Ctrl-C is heard
BATCH_FILES = 64  # open at once


def pour_all(source: Source, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Scan]]:
    """Read every piece to where it goes; what a look at each showed, those of one tensor in their order.

    Raises:
        CheckpointError: a file cannot be read.
    """
    plain, others = _sorted_out(source, pieces)
    for batch in _batches(plain):
        yield from zip((part.piece for part in batch), _pour_batch(batch), strict=True)
    with _in_order(Staging(source).pour, others) as found:
        yield from zip(others, found, strict=True)


@dataclass(frozen=True)
class Plain:
    """A piece whose rows lie in a file one behind the other, in a dtype that C++ reads.

    Attributes:
        offset: of the first, in bytes.
        into: the rows of the piece's target, in that dtype if it is a tensor.
    """

    piece: Piece
    file: str
    offset: int
    nbytes: int
    dtype: torch.dtype
    into: Sink | torch.Tensor


def _sorted_out(source: Source, pieces: Sequence[Piece]) -> tuple[list[Plain], list[Piece]]:
    """The pieces that C++ reads, and the others."""
    if not isinstance(source, FilesSource) or not _have_kernels():
        return [], list(pieces)
    plain, others = [], []
    for piece in pieces:
        part = _plain(source, piece)
        if part is None:
            others.append(piece)
        else:
            plain.append(part)
    return plain, others


def _have_kernels() -> bool:
    try:
        library()
    except Unavailable:
        return False
    return True


def _plain(source: FilesSource, piece: Piece) -> Plain | None:
    copy, info = piece.copy, source.tensors[piece.copy.source]
    dtype = FLOAT_DTYPES[info.dtype]
    if (
        copy.view is not None
        or not isinstance(info, StoredInfo)
        or info.strides is not None
        or dtype not in FLOAT_KINDS
    ):
        return None
    found = _rows_of(piece, dtype)
    if found is None:
        return None
    index, into = found
    start, shape = part_range(info.shape, index)
    offset = info.offset + start * dtype.itemsize
    return Plain(piece, info.file, offset, prod(shape) * dtype.itemsize, dtype, into)


def _rows_of(piece: Piece, dtype: torch.dtype) -> tuple[Index, Sink | torch.Tensor] | None:
    """The part of the source that the piece is, and where its numbers go; None where C++ cannot put them there."""
    index, into = piece.copy.index, piece.into
    if isinstance(into, Sink):
        return rows_of(index, piece.start, piece.stop), into.rows(piece.start, piece.stop)
    if not isinstance(into, torch.Tensor) or into.dtype != dtype or into.device.type != "cpu":
        return None
    if not into.is_contiguous():
        return None
    if into.dim() < 2:  # one piece
        return index, into
    return rows_of(index, piece.start, piece.stop), into[piece.start : piece.stop]


def _batches(parts: Sequence[Plain]) -> Iterator[list[Plain]]:
    batch: list[Plain] = []
    nbytes, files = 0, set[str]()
    for part in parts:
        nbytes += part.nbytes
        files.add(part.file)
        if batch and (nbytes > BATCH_BYTES or len(files) > BATCH_FILES):
            yield batch
            batch, nbytes, files = [], part.nbytes, {part.file}
        batch.append(part)
    if batch:
        yield batch


def _pour_batch(batch: Sequence[Plain]) -> list[Scan]:
    with ExitStack() as stack:
        files = {path: _open(path, stack) for path in dict.fromkeys(part.file for part in batch)}
        rows = [Rows(files[part.file], part.offset, part.dtype, part.into) for part in batch]
        found = pour(rows)
    for part, one in zip(batch, found, strict=True):
        if isinstance(one, EOFError):
            raise CheckpointError(f"{part.file} became shorter while it was read")
        if isinstance(one, OSError):
            raise CheckpointError(f"cannot read {part.file}: {one}")
    return [scan_of(one) for one in found if not isinstance(one, Exception)]


def _open(path: str, stack: ExitStack) -> int:
    try:
        file = open_regular(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    stack.callback(os.close, file)
    return file


@contextmanager
def _in_order(function: Callable[[Piece], Scan], pieces: Sequence[Piece]) -> Iterator[Iterator[Scan]]:
    """The function of every piece, by all threads; none begins another once something went wrong."""
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        yield map(function, pieces)
        return
    with ThreadPoolExecutor(threads, "load") as pool:
        try:
            yield pool.map(function, pieces)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

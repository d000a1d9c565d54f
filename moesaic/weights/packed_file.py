"""Files of packed matrices: written from the memory in which matrices lie, and read into it as they are. (What such a
file looks like: `weights.containers.packed`.)

A region is a run of pages that matrices lie in; whole regions go to the file and come back, by several threads, past
the page cache, straight into huge pages.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from moesaic.kernels.cpu.arena import PAGE, round_up
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.weights.containers.packed import header_bytes

PIECE = 16 << 20  # read or written at once
READERS = 4
SAMPLE_EVERY, SAMPLE = 1 << 16, 64  # what a checksum of a region looks at: it finds holes, not single bits

NamedMatrices = Sequence[tuple[str, PackedMatrix]]


@dataclass(frozen=True)
class Region:
    """Pages of memory in which packed matrices lie: uint8, a multiple of 4 KiB, aligned to it."""

    data: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Of its pages."""
        return int(self.data.numel())

    def check(self) -> int:
        """A checksum of samples."""
        sampled = self.data[: self.data.numel() // SAMPLE_EVERY * SAMPLE_EVERY].view(-1, SAMPLE_EVERY)[:, :SAMPLE]
        edges = torch.cat((self.data[:SAMPLE], self.data[-SAMPLE:]))
        found: int = zlib.crc32(edges.numpy().tobytes(), zlib.crc32(sampled.contiguous().numpy().tobytes()))
        return found


def regions_of(matrices: Sequence[PackedMatrix]) -> tuple[list[Region], list[tuple[int, int]]]:
    """The runs of pages that matrices lie in, one for each block of memory, and each matrix's (region, offset)."""
    blocks: dict[int, list[PackedMatrix]] = {}
    for matrix in matrices:
        blocks.setdefault(matrix.data.untyped_storage().data_ptr(), []).append(matrix)
    regions: list[Region] = []
    places: dict[int, tuple[int, int]] = {}
    for inside in blocks.values():  # in the order in which the model made them
        storage = inside[0].data.untyped_storage()
        base = storage.data_ptr()
        first = min(m.data.data_ptr() for m in inside) // PAGE * PAGE
        end = round_up(max(m.data.data_ptr() + m.nbytes for m in inside), PAGE)
        if first < base or end > base + storage.nbytes():
            raise ValueError("packed matrices do not lie in pages of their own")
        for matrix in inside:
            places[id(matrix)] = (len(regions), matrix.data.data_ptr() - first)
        whole = torch.empty(0, dtype=torch.uint8).set_(storage, first - base, (end - first,))
        regions.append(Region(whole))
    return regions, [places[id(matrix)] for matrix in matrices]


def write_regions(
    path: str,
    header: Mapping[str, Any],
    regions: Sequence[Region],
    seen: Callable[[memoryview], None] = lambda piece: None,
) -> None:
    """Write a file anew.

    Args:
        header: without regions and checksums, which are added.
        seen: shown all that is written, in order.
    """
    whole = {**header, "regions": [r.nbytes for r in regions], "checks": [r.check() for r in regions]}
    head = header_bytes(whole)
    with open(path, "wb", buffering=0) as file:
        for piece, offset in [(memoryview(head), 0), *_pieces(regions, len(head))]:
            seen(piece)
            _write_all(file.fileno(), piece, offset)
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Stored:
    """Regions of a file: where they begin there, and the checksums that they must have."""

    path: str
    begin: int
    regions: Sequence[Region]
    checks: Sequence[int]


def read_regions(files: Iterable[Stored]) -> None:
    """Fill all regions from their files. Raises OSError, or ValueError for a file that is not what was written."""
    files = list(files)
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(file.path)) for file in files]
        pieces = [
            (reader, piece, offset)
            for reader, file in zip(readers, files, strict=True)
            for piece, offset in _pieces(file.regions, file.begin)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(READERS, "read-packed"))
        whole = list(pool.map(lambda p: p[0].read(p[1], p[2]), pieces))
    for (reader, _, _), filled in zip(pieces, whole, strict=True):
        if not filled:
            raise ValueError(f"{reader.path} became shorter while it was read")
    for file in files:
        if [region.check() for region in file.regions] != list(file.checks):
            raise ValueError(f"{file.path}: its bytes are not those that were written")


def _pieces(regions: Sequence[Region], begin: int) -> Iterator[tuple[memoryview, int]]:
    """(bytes in memory, their offset in the file), all regions in order."""
    for region in regions:
        view = memoryview(region.data.numpy())
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE], begin + start
        begin += len(view)


class _Reader:
    """Reads pieces: from the page cache what is there, the rest straight from the disk past it. (Through the page cache
    a cold file took 3 to 4 s of CPU time per GB, past it 0.2 s; docs/log.md.)"""

    def __init__(self, path: str) -> None:
        self.path = path
        self._cached = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError, AttributeError):  # else asking what is there would read ahead what is not, megabytes
            os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_RANDOM)
        self._direct: int | None = None
        with suppress(OSError, AttributeError):  # a file system or system without it
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    def read(self, into: memoryview, offset: int) -> bool:
        """Fill `into`, whole pages, from byte `offset`. False when the file ends before."""
        while into:
            count = self._from_cache(into, offset) or self._from_disk(into, offset)
            if count == 0:
                return False
            into, offset = into[count:], offset + count
        return True

    def _from_cache(self, into: memoryview, offset: int) -> int:
        if self._direct is None:
            return 0
        try:  # one page first: where it is not there, the rest is not asked for, which would read that too
            first = os.preadv(self._cached, [into[:PAGE]], offset, os.RWF_NOWAIT)
            return first + os.preadv(self._cached, [into[first:]], offset + first, os.RWF_NOWAIT)
        except OSError:  # not there (EAGAIN), or nothing that the file system can say
            return 0

    def _from_disk(self, into: memoryview, offset: int) -> int:
        if self._direct is not None and offset % PAGE == 0:
            with suppress(OSError):
                return os.preadv(self._direct, [into], offset)
        return os.preadv(self._cached, [into], offset)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count

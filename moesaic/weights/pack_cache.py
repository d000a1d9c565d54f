"""Packed weights on disk, so that a second start reads them as they are: no quantising, no packing.

A file holds what a model's packed matrices look like in memory, region by region (a region is a run of pages that
matrices lie in), so that reading goes straight into huge pages, by several threads. It is keyed by the checkpoint
(config, names, shapes and places of tensors, sizes and dates of files), by every matrix's format and place, and by the
version of layout and quantiser. It is written to a temporary file and renamed; one that is torn, or of anything else
than what is asked for, is not used.

    8 bytes MAGIC · 8 bytes length of the header · 32 bytes SHA-256 of the header · header, JSON · zeros to 4 KiB ·
    regions, each of whole 4 KiB pages
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.core.log import get_logger
from moesaic.kernels.cpu.arena import PAGE, round_up
from moesaic.kernels.cpu.packed import PackedMatrix, pack_version
from moesaic.weights.codecs.codes import is_coded
from moesaic.weights.sources import Source

log = get_logger(__name__)

MAGIC = b"moepack1"
PREFIX = 48  # bytes before the header
PIECE = 16 << 20  # read or written at once
READERS = 4
SAMPLE_EVERY, SAMPLE = 1 << 16, 64  # what a checksum of a region looks at: it finds holes, not single bits
FREE_BESIDE = 1 << 30  # disk space that is left alone
ABANDONED_SECONDS = 3600  # a temporary file older than this belongs to nobody


NamedMatrices = Sequence[tuple[str, PackedMatrix]]


@dataclass(frozen=True)
class Region:
    """Pages of memory in which packed matrices lie: uint8, a multiple of 4 KiB, aligned to it."""

    data: torch.Tensor

    def check(self) -> int:
        """A checksum of samples."""
        sampled = self.data[: self.data.numel() // SAMPLE_EVERY * SAMPLE_EVERY].view(-1, SAMPLE_EVERY)[:, :SAMPLE]
        edges = torch.cat((self.data[:SAMPLE], self.data[-SAMPLE:]))
        return zlib.crc32(edges.numpy().tobytes(), zlib.crc32(sampled.contiguous().numpy().tobytes()))


class PackCache:
    """The file of one model's packed matrices in a folder.

    Args:
        folder: of all such files; made when one is written.
        checkpoint: folder of the checkpoint.
        identity: what distinguishes the checkpoint (`identify`).
        matrices: all of the model, each once, with a canonical name; unfilled.
    """

    def __init__(self, folder: str, checkpoint: str, identity: str, matrices: NamedMatrices) -> None:
        self.folder = Path(folder)
        self._checkpoint, self._identity = os.path.realpath(checkpoint), identity
        self.regions, places = _regions([matrix for _, matrix in matrices])
        layout = [
            [name, *m.shape, str(m.format), m.gated, *place] for (name, m), place in zip(matrices, places, strict=True)
        ]
        self._key = _digest([pack_version(), identity, layout])
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in os.path.basename(self._checkpoint))
        self.path = self.folder / f"{stem[:80]}-{self._key[:16]}.moepack"
        self.nbytes = sum(region.data.numel() for region in self.regions)

    def load(self) -> bool:
        """Fill the matrices from the file. False where there is none that is whole: they are to be filled otherwise."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                start = time.perf_counter()
                header = _read_header(file)
                self._read(file, header)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as e:
            log.warning("the packed weights in %s cannot be used and are made anew: %s", self.path, e)
            with suppress(OSError):
                self.path.unlink()
            return False
        seconds = time.perf_counter() - start
        log.info("read %.1f MB of packed weights from %s in %.1f s", self.nbytes / 1e6, self.path, seconds)
        return True

    def save(self) -> None:
        """Write the filled matrices. What goes wrong is a warning: the model runs without."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
            free = shutil.disk_usage(self.folder).free
            if free < self.nbytes + FREE_BESIDE:
                raise OSError(f"{free / 1e9:.1f} GB are free, {self.nbytes / 1e9:.1f} GB are to be written")
            start = time.perf_counter()
            self._write()
        except OSError as e:
            log.warning("packed weights are not kept for the next start: %s (--pack-cache names another folder)", e)
            return
        log.info(
            "kept %.1f MB of packed weights for the next start in %s (%.1f s; --pack-cache off keeps none)",
            self.nbytes / 1e6,
            self.path,
            time.perf_counter() - start,
        )

    def _header(self) -> dict[str, Any]:
        return {
            "key": self._key,
            "checkpoint": self._checkpoint,
            "identity": self._identity,
            "regions": [region.data.numel() for region in self.regions],
            "checks": [region.check() for region in self.regions],
        }

    def _read(self, file: Any, header: dict[str, Any]) -> None:
        """Raises ValueError unless the file is this model's, and whole."""
        sizes = [region.data.numel() for region in self.regions]
        if header["key"] != self._key or header["regions"] != sizes:
            raise ValueError("it belongs to another model")
        begin, size = header["begin"], os.fstat(file.fileno()).st_size
        if size != begin + sum(sizes):
            raise ValueError(f"it has {size} bytes instead of {begin + sum(sizes)}")
        reader = _Reader(file)
        with closing(reader), ThreadPoolExecutor(READERS, "pack-cache") as pool:
            if not all(pool.map(lambda piece: reader.read(*piece), list(_pieces(self.regions, begin)))):
                raise ValueError("it became shorter while it was read")
        if [region.check() for region in self.regions] != header["checks"]:
            raise ValueError("its bytes are not those that were written")

    def _write(self) -> None:
        text = json.dumps(self._header()).encode()
        prefix = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
        begin = round_up(PREFIX + len(text), PAGE)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with open(temporary, "wb", buffering=0) as file:
                _write_all(file.fileno(), memoryview((prefix + text).ljust(begin, b"\0")), 0)
                for piece, offset in _pieces(self.regions, begin):
                    _write_all(file.fileno(), piece, offset)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _tidy(self) -> None:
        """Remove what nobody will read: files of this checkpoint as it was before it changed, and abandoned writes."""
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        for path in self.folder.glob("*.moepack"):
            with suppress(OSError, ValueError, KeyError):
                with open(path, "rb") as file:
                    header = _read_header(file)
                if header["checkpoint"] == self._checkpoint and header["identity"] != self._identity:
                    path.unlink()
                    log.info("removed %s: its checkpoint has changed", path)


def identify(checkpoint: str, source: Source) -> str:
    """What distinguishes a checkpoint from others and from itself before a change, without reading its weights."""
    files = sorted({file for info in source.tensors.values() for file in info.files})
    stats = [(os.path.basename(f), os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
    tensors = [
        (name, info.dtype, info.shape, os.path.basename(info.file), info.offset, _own_codes(source, name))
        for name, info in source.tensors.items()
    ]
    file = os.path.join(checkpoint, "config.json")
    config = Path(file).read_bytes() if os.path.isfile(file) else b""  # a GGUF file is its own
    return _digest([hashlib.sha256(config).hexdigest(), stats, tensors])


def _own_codes(source: Source, name: str) -> str:
    """The format in which a tensor's own codes are kept: other bytes than of a weight that is quantised anew."""
    return str(source.format_of(name)) if is_coded(source) else ""


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _regions(matrices: Sequence[PackedMatrix]) -> tuple[list[Region], list[tuple[int, int]]]:
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

    def __init__(self, file: Any) -> None:
        self._cached = file.fileno()
        self._direct: int | None = None
        with suppress(OSError, AttributeError):  # a file system or system without it
            self._direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)

    def read(self, into: memoryview, offset: int) -> bool:
        """Fill `into`, whole pages, from byte `offset`. False when the file ends before."""
        while into:
            count = self._from_cache(into, offset) or self._from_disk(into, offset)
            if count == 0:
                return False
            into, offset = into[count:], offset + count
        return True

    def close(self) -> None:
        """Close what was opened here."""
        if self._direct is not None:
            os.close(self._direct)

    def _from_cache(self, into: memoryview, offset: int) -> int:
        if self._direct is None:
            return 0
        try:
            return os.preadv(self._cached, [into], offset, os.RWF_NOWAIT)
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


def _read_header(file: Any) -> dict[str, Any]:
    """The header, with `begin` added: where the regions start. Raises ValueError for what is none."""
    prefix = file.read(PREFIX)
    if len(prefix) < PREFIX or not prefix.startswith(MAGIC):
        raise ValueError("it is not a file of packed weights of this version")
    length = int.from_bytes(prefix[8:16], "little")
    text = file.read(min(length, os.fstat(file.fileno()).st_size))
    if hashlib.sha256(text).digest() != prefix[16:]:
        raise ValueError("its header is damaged")
    header: dict[str, Any] = json.loads(text)
    header["begin"] = round_up(PREFIX + length, PAGE)
    return header

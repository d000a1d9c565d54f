"""Packed weights on disk, so that a second start reads them as they are: no quantising, no packing.

A file (`weights.packed_file`) is keyed by the checkpoint (config, names, shapes and places of tensors, sizes and dates
of files), by every matrix's format and place, and by the version of layout and quantiser. It is written to a temporary
file and renamed; one that is torn, or of anything else than what is asked for, is not used.
"""

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from moesaic.core.log import get_logger
from moesaic.kernels.cpu.packed import pack_version
from moesaic.weights.codecs.codes import is_coded
from moesaic.weights.containers.packed import SUFFIX, read_raw
from moesaic.weights.packed_file import NamedMatrices, Stored, read_regions, regions_of, write_regions
from moesaic.weights.sources import Source

log = get_logger(__name__)

FREE_BESIDE = 1 << 30  # disk space that is left alone
ABANDONED_SECONDS = 3600  # a temporary file older than this belongs to nobody


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
        self.regions, places = regions_of([matrix for _, matrix in matrices])
        layout = [
            [name, *m.shape, str(m.format), m.gated, *place] for (name, m), place in zip(matrices, places, strict=True)
        ]
        self._key = _digest([pack_version(), identity, layout])
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in os.path.basename(self._checkpoint))
        self.path = self.folder / f"{stem[:80]}-{self._key[:16]}{SUFFIX}"
        self.nbytes = sum(region.nbytes for region in self.regions)

    def load(self) -> bool:
        """Fill the matrices from the file. False where there is none that is whole: they are to be filled otherwise."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                start = time.perf_counter()
                self._read(read_raw(file), os.fstat(file.fileno()).st_size)
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
        }

    def _read(self, header: dict[str, Any], size: int) -> None:
        """Raises ValueError unless the file is this model's, and whole."""
        sizes = [region.nbytes for region in self.regions]
        if header["key"] != self._key or header["regions"] != sizes:
            raise ValueError("it belongs to another model")
        begin = header["begin"]
        if size != begin + sum(sizes):
            raise ValueError(f"it has {size} bytes instead of {begin + sum(sizes)}")
        read_regions([Stored(str(self.path), begin, self.regions, header["checks"])])

    def _write(self) -> None:
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            write_regions(str(temporary), self._header(), self.regions)
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
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError, ValueError, KeyError):
                with open(path, "rb", buffering=0) as file:
                    header = read_raw(file)
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

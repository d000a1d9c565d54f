"""GGUF checkpoints: one file, or a set of shards. Headers are read without torch, data on demand.

A source shows tensors as they are stored; what their blocks stand for, `weights.codecs.gguf` knows.
"""

import os
import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.gguf_header import GgufHeader, read_gguf_header
from moesaic.weights.containers.gguf_types import BY_NAME
from moesaic.weights.containers.safetensors import MAX_READ_BYTES, part_range
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ITEM_BITS, TensorInfo, merge_shards

if TYPE_CHECKING:
    import torch

SUFFIX = ".gguf"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
BESIDE = "mmproj"  # what the name of a file begins with that holds no language model, but what sees for one


class GgufSource:
    """Tensors of one or more GGUF files, and the metadata of the first.

    Raises:
        CheckpointError, UnsupportedError: a file is damaged, or of a kind that is not read.
    """

    naming = "gguf"

    def __init__(self, shards: list[str]) -> None:
        headers = [read_gguf_header(path) for path in shards]
        _check_split(headers)
        self.metadata = headers[0].metadata
        self.tensors = merge_shards(header.tensors for header in headers)
        self._files = {path: _File(path) for path in shards}

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """As of `Source`, of tensors that are kept as plain numbers."""
        self.read_plain(self.tensors[name], index, into)

    def read_plain(self, info: TensorInfo, index: Index, into: "torch.Tensor") -> None:
        """Copy a part of a tensor that lies where `info` says, whatever its name and shape, in `into`'s dtype.

        Raises:
            CheckpointError: it is kept in blocks, of which no part but whole rows can be read.
        """
        import torch

        from moesaic.weights.dtypes import DTYPES

        if info.dtype not in ITEM_BITS:
            raise CheckpointError(f"{info.file}: its tensors of type {info.dtype} are no plain numbers")
        start, shape = part_range(info.shape, index)
        dtype = DTYPES[info.dtype]
        direct = into.dtype == dtype and into.is_contiguous() and into.device.type == "cpu"
        buffer = into if direct else torch.empty(shape, dtype=dtype)
        view = memoryview(buffer.reshape(-1).view(torch.uint8).numpy())
        self._files[info.file].read_into(info.offset + start * dtype.itemsize, view)
        if not direct:
            into.copy_(buffer)

    def read_blocks(self, info: TensorInfo, start: int, stop: int) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
        """The bytes of rows [start, stop) of a tensor, counted over all of its dimensions but the last: uint8
        `[rows, bytes of a row]`."""
        kind = BY_NAME[info.dtype]
        row = info.shape[-1] // kind.block * kind.nbytes
        rows = np.empty((stop - start, row), np.uint8)
        self._files[info.file].read_into(info.offset + start * row, memoryview(rows.reshape(-1)))
        return rows


class _File:
    """A file that is opened when something is first read of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view`, of bytes, from byte `offset` on. Threads may call it at the same time."""
        try:
            while view:
                count = os.preadv(self._file.fileno(), [view[:MAX_READ_BYTES]], offset)
                if count == 0:
                    raise CheckpointError(f"{self.path} became shorter while it was read")
                view, offset = view[count:], offset + count
        except OSError as e:
            raise CheckpointError(f"cannot read {self.path}: {e}") from e

    @cached_property
    def _file(self):  # type: ignore[no-untyped-def]
        return open(self.path, "rb", buffering=0)  # noqa: SIM115 (open for as long as this object lives)


def gguf_shards(path: str) -> list[str]:
    """The files of the GGUF checkpoint that `path` is, or is one shard of, or that lies in folder `path`; [] where there
    is none.

    Raises:
        CheckpointError: there are several, or shards are missing.
    """
    if not os.path.isdir(path):
        return _all_of(path) if path.endswith(SUFFIX) and os.path.isfile(path) else []
    names = sorted(n for n in os.listdir(path) if n.endswith(SUFFIX) and not n.startswith(BESIDE))
    sets = {(m["stem"], m["count"]) if (m := SHARD.fullmatch(name)) else (name, "") for name in names}
    if len(sets) > 1:
        raise CheckpointError(
            f"{path} holds {len(sets)} GGUF models: name the file of one ({', '.join(names[:10])}"
            f"{', ...' if len(names) > 10 else ''})"
        )
    return _all_of(os.path.join(path, names[0])) if names else []


def _all_of(file: str) -> list[str]:
    """The file, or the whole set of shards that it is one of."""
    folder, name = os.path.split(file)
    found = SHARD.fullmatch(name)
    if found is None:
        return [file]
    count = int(found["count"])
    names = [f"{found['stem']}-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]
    absent = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if absent or not count:
        raise CheckpointError(f"{file} is one of {count} shards, {len(absent)} of them missing: {', '.join(absent[:10])}")
    return [os.path.join(folder, name) for name in names]


def _check_split(headers: list[GgufHeader]) -> None:
    """See that these files are the shards of one checkpoint, in order."""
    for i, header in enumerate(headers):
        number, count = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1
        if (number, count) != (i, len(headers)):
            raise CheckpointError(
                f"{header.path} says that it is shard {number} of {count} (from 0 on), but its name makes it {i} of "
                f"{len(headers)}"
            )

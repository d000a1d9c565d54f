"""GGUF checkpoints: one file, or a set of shards. Headers are read without torch, data on demand.

A source shows tensors as they are stored; what their blocks stand for, `weights.codecs.gguf` knows.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError, MoesaicError
from moesaic.weights.containers.gguf_header import GgufHeader, read_gguf_header, survey_gguf_header
from moesaic.weights.containers.gguf_types import BY_NAME
from moesaic.weights.containers.stored import StoredInfo, read_bytes
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ITEM_BITS, merge_shards

if TYPE_CHECKING:
    import numpy as np
    import torch

SUFFIX = ".gguf"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
BEFORE = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".hdf5")
BESIDE = "mmproj"  # what the name of a file begins with that holds no language model, but what sees for one


class GgufSource:
    """Tensors of one or more GGUF files, and the metadata of the first."""

    naming = "gguf"

    def __init__(self, metadata: Mapping[str, Any], tensors: dict[str, StoredInfo]) -> None:
        self.metadata, self.tensors = metadata, tensors

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """As of `Source`, of tensors that are kept as plain numbers."""
        info = self.tensors[name]
        if info.dtype not in ITEM_BITS:
            raise CheckpointError(f"{info.file}: {name} is kept as {info.dtype}, which is no plain number")
        info.read(index, into)

    def read_blocks(self, info: StoredInfo, start: int, stop: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The bytes of rows [start, stop) of a tensor, counted over all of its dimensions but the last: uint8
        `[rows, bytes of a row]`. Threads may call it at the same time."""
        import torch

        kind = BY_NAME[info.dtype]
        row = info.shape[-1] // kind.block * kind.nbytes
        rows = torch.empty(stop - start, row, dtype=torch.uint8)
        read_bytes(info.file, info.offset + start * row, rows)
        array: np.ndarray[Any, np.dtype[np.uint8]] = rows.numpy()
        return array

    def read_short(self, info: StoredInfo) -> bytes:
        """All bytes of a small tensor, without torch."""
        try:
            with open(info.file, "rb") as file:
                file.seek(info.offset)
                data = file.read(info.nbytes)
        except OSError as e:
            raise CheckpointError(f"cannot read {info.file}: {e}") from e
        if len(data) < info.nbytes:
            raise CheckpointError(f"{info.file} ends within a tensor that is wanted")
        return data


def open_gguf(shards: list[str]) -> GgufSource:
    """The checkpoint that these files make, in order.

    Raises:
        CheckpointError, UnsupportedError: a file is damaged, or of a kind that is not read.
    """
    headers = [read_gguf_header(path) for path in shards]
    _check_split(headers)
    return GgufSource(headers[0].metadata, merge_shards(header.tensors for header in headers))


def survey_gguf(path: str) -> tuple[GgufSource, dict[str, str]]:
    """What can be seen of a damaged checkpoint: one of the headers that can be read, and what is wrong, by file."""
    metadata: Mapping[str, Any] = {}
    tensors: dict[str, StoredInfo] = {}
    wrong: dict[str, str] = {}
    for file in _shards_there(path):
        try:
            header, damage = survey_gguf_header(file)
        except MoesaicError as e:
            wrong[file] = str(e)
            continue
        if damage:
            wrong[file] = damage
        metadata = metadata or header.metadata
        tensors |= header.tensors
    return GgufSource(metadata, tensors), wrong


def _shards_there(path: str) -> list[str]:
    """The files of the one checkpoint at `path`, of a set those that are there; none of several checkpoints."""
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
    sets: dict[str, list[str]] = defaultdict(list)
    for other in sorted(os.listdir(folder or ".")):
        if other.endswith(SUFFIX) and not other.startswith(BESIDE):
            sets[_set_of(other)].append(os.path.join(folder, other))
    if name:
        return sets[_set_of(name)]
    return next(iter(sets.values())) if len(sets) == 1 else []


def _set_of(name: str) -> str:
    """What the names of one checkpoint's files have in common."""
    found = SHARD.fullmatch(name)
    return name if found is None else f"{found['stem']} of {found['count']}"


def gguf_shards(path: str) -> list[str]:
    """The files of the GGUF checkpoint that `path` is, or is one shard of, or that lies in folder `path`; [] where
    there is none.

    Raises:
        CheckpointError: there are several, or shards are missing.
    """
    if not os.path.isdir(path):
        return _all_of(path) if path.endswith(SUFFIX) and os.path.isfile(path) else []
    names = sorted(n for n in os.listdir(path) if n.endswith(SUFFIX) and not n.startswith(BESIDE))
    sets = set(map(_set_of, names))
    if len(sets) > 1:
        raise CheckpointError(
            f"{path} holds {len(sets)} GGUF models: name the file of one ({', '.join(names[:10])}"
            f"{', ...' if len(names) > 10 else ''})"
        )
    return _all_of(os.path.join(path, names[0])) if names else []


def gguf_alone(path: str) -> list[str]:
    """`gguf_shards` of a path where the weights are not kept in other files too, which go before. Raises as that
    does."""
    if os.path.isdir(path) and any(name.endswith(BEFORE) for name in os.listdir(path)):
        return []
    return gguf_shards(path)


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
        raise CheckpointError(
            f"{file} is one of {count} shards, {len(absent)} of them missing: {', '.join(absent[:10])}"
        )
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

"""One safetensors file: its header, checked against its size. Torch-free.

Our own reader rather than the library's, so that a tensor, or a part of one, lands in the parameter's own memory
without a copy of the file or of the tensor in between (`containers.stored`).
"""

import math
import os
from collections.abc import Mapping
from io import FileIO
from typing import Any

from moesaic.core.errors import CheckpointError
from moesaic.core.files import open_regular, parse_json
from moesaic.weights.containers.stored import StoredInfo, refuse_pointer
from moesaic.weights.tensors import ITEM_BITS

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMS = 64  # torch's


def read_header(path: str) -> dict[str, StoredInfo]:
    """Every tensor of a file, in the order in which they lie there. Raises CheckpointError for a damaged file."""
    tensors, damage = survey_header(path)
    if damage:
        raise CheckpointError(damage)
    return tensors


def survey_header(path: str) -> tuple[dict[str, StoredInfo], str]:
    """What the header of a file describes, and what is wrong with the data behind it: "", or that tensors lie over each
    other or the file is cut off. (What lies between tensors is not looked at.)

    Raises:
        CheckpointError: not even the header can be read.
    """
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            tensors = _header(file, path)
            return tensors, _damage(path, tensors, os.fstat(file.fileno()).st_size)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e


def _header(file: FileIO, path: str) -> dict[str, StoredInfo]:
    """Every tensor that the file describes, in the order in which they lie there."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(64)
    refuse_pointer(path, head)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: it has {size} bytes, "
            f"its header alone would need {8 + length}"
        )
    file.seek(8)
    try:
        header = parse_json(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        infos = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: its safetensors header is damaged ({e!r})") from e
    return dict(sorted(infos.items(), key=lambda item: item[1].offset))


def _tensor_info(path: str, name: str, entry: dict[str, Any], data_start: int) -> StoredInfo:
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in ITEM_BITS:
        raise CheckpointError(f"{path}: tensor {name} has the unknown dtype {dtype}")
    if len(shape) > MAX_DIMS or not all(isinstance(n, int) and 0 <= n < 1 << 63 for n in (*shape, begin, end)):
        raise ValueError(f"shape or offsets of {name}")
    if (end - begin) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
        raise ValueError(f"{name}: {end - begin} bytes for {dtype} {list(shape)}")
    return StoredInfo(dtype, shape, path, data_start + begin)


def _damage(path: str, tensors: Mapping[str, StoredInfo], size: int) -> str:
    """What is wrong with tensors, in the order in which they lie, of a file of `size` bytes."""
    last, end = "", 0
    for name, info in tensors.items():
        if info.nbytes and info.offset < end:
            return f"{path} is damaged: its header lays the tensors {last} and {name} over each other"
        if info.offset + info.nbytes > end:
            last, end = name, info.offset + info.nbytes
    if end <= size:
        return ""
    return (
        f"{path} is truncated: its header describes {end} bytes, the file has {size} "
        f"({end - size} missing); download it again"
    )

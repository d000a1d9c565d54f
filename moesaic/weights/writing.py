"""Writing safetensors files: one tensor at a time, hashed on the way, under a temporary name until whole."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

from moesaic.weights.dtypes import DTYPES
from moesaic.weights.rules import Shape

ALIGN = 64  # bytes that the header is padded to, so that tensors lie aligned in a mapped file


def header_of(tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with these tensors (name -> dtype as safetensors spells it, shape), in this order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text


def write_file(
    path: str,
    tensors: Mapping[str, tuple[str, Shape]],
    values: Callable[[str], Tensor],
    metadata: Mapping[str, str] = {},
    advance: Callable[[int], None] = lambda count: None,
) -> str:
    """Write a safetensors file; the SHA-256 of what was written, in hexadecimal.

    Args:
        tensors: name -> dtype and shape, in the order of the file.
        values: gives each tensor, contiguous and on the CPU, when it is its turn.
        advance: told the bytes written since its last call.
    """
    temporary, digest = f"{path}.tmp", hashlib.sha256()
    try:
        with open(temporary, "wb", buffering=0) as file:
            _write(file.fileno(), memoryview(header_of(tensors, metadata)), digest.update, advance)
            for name, wanted in tensors.items():
                _write(file.fileno(), _bytes_of(name, wanted, values(name)), digest.update, advance)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return digest.hexdigest()


def _bytes_of(name: str, wanted: tuple[str, Shape], tensor: Tensor) -> memoryview:
    dtype, shape = wanted
    if tensor.dtype is not DTYPES[dtype] or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, the header says {dtype} {list(shape)}")
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _write(fd: int, data: memoryview, seen: Callable[[memoryview], None], advance: Callable[[int], None]) -> None:
    step = 16 << 20
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        seen(piece)
        while piece:
            count = os.write(fd, piece)
            advance(count)
            piece = piece[count:]


def in_shards(sizes: Mapping[str, int], most: int) -> Sequence[list[str]]:
    """Names in files of at most so many bytes each, in order; a tensor that is larger has a file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards

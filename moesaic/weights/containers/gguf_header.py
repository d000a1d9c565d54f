"""The header of a GGUF file (docs/gguf.md of https://github.com/ggml-org/ggml): metadata, and where its tensors lie.
Every count and length is checked against what the file has before anything is made of it. Torch-free.
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.files import open_regular
from moesaic.weights.containers.gguf_types import ARRAY, FLOAT32, SCALARS, STRING, TENSOR_TYPES
from moesaic.weights.containers.stored import StoredInfo, refuse_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 28  # a vocabulary of 256k with its merges takes 20 MB
MAX_KEY_BYTES, MAX_NAME_BYTES = 65535, 1024  # the first as the format has it
MAX_DIMS = 4
READ_BYTES = 1 << 22
SHORT = 1024  # elements of an array that is read at once
ALIGNMENT = 32  # where the metadata do not say
COUNT, TYPE = struct.Struct("<Q"), struct.Struct("<I")


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the data.

    Attributes:
        metadata: values by key; arrays are sequences, long ones are read when they are looked at.
        tensors: by name, in the order of the data; shapes as torch has them, `[rows, columns]`.
    """

    path: str
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, StoredInfo] = field(repr=False)


@dataclass(frozen=True)
class LongArray:
    """An array that was only measured; iterating reads it."""

    kind: int
    count: int
    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        if self.kind != STRING:
            yield from (value for (value,) in SCALARS[self.kind].iter_unpack(self.data))
            return
        position, unpack = 0, COUNT.unpack_from
        for _ in range(self.count):
            (length,) = unpack(self.data, position)
            position += 8 + length
            yield self.data[position - length : position].decode(errors="replace")


def read_gguf_header(path: str) -> GgufHeader:
    """The header of the file at `path`.

    Raises:
        CheckpointError: it cannot be read, is damaged or truncated.
        UnsupportedError: it is of a version, or has tensors of a type, that is not read here.
    """
    header, damage = survey_gguf_header(path)
    if damage:
        raise CheckpointError(damage)
    return header


def survey_gguf_header(path: str) -> tuple[GgufHeader, str]:
    """The same, and what is wrong with the data behind it: "", or that the file is cut off. Raises as that for all
    else."""
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            return _Header(path, file.fileno(), os.fstat(file.fileno()).st_size).read()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e


class _Header:
    """A place in the file, behind which as much is read as is asked for."""

    def __init__(self, path: str, file: int, size: int) -> None:
        self.path, self._file, self.size = path, file, size
        self._end = min(size, MAX_HEADER_BYTES)
        self._buffer = bytearray()
        self.position = 0

    def read(self) -> tuple[GgufHeader, str]:
        num_tensors, num_values = self._read_start()
        metadata: dict[str, Any] = {}
        for i in range(num_values):
            key = self._text(MAX_KEY_BYTES, f"the key of value {i}")
            if key in metadata:
                raise self._damaged(f"the key {key} stands in it twice")
            metadata[key] = self._value(self._scalar(TYPE), key)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, which no alignment can be")
        infos: dict[str, StoredInfo] = {}
        for i in range(num_tensors):
            name, info = self._tensor(i, alignment)
            if name in infos:
                raise self._damaged(f"the tensor {name} stands in it twice")
            infos[name] = info
        start = -(-self.position // alignment) * alignment
        tensors, damage = self._placed(infos, start)
        return GgufHeader(self.path, metadata, tensors), damage

    def _read_start(self) -> tuple[int, int]:
        """How many tensors and values there are."""
        head = bytes(self._take(min(24, self.size)))
        refuse_pointer(self.path, head)
        if not head.startswith(MAGIC) or len(head) < 24:
            raise CheckpointError(f"{self.path} is no GGUF file: it begins with {head[:8]!r} and has {self.size} bytes")
        version, num_tensors, num_values = struct.unpack("<IQQ", head[4:])
        if version not in VERSIONS:
            big = int.from_bytes(head[4:8], "big") in VERSIONS
            what = "is a big-endian GGUF file" if big else f"is a GGUF file of version {version}"
            raise UnsupportedError(f"{self.path} {what}: little-endian ones of versions 2 and 3 are read")
        self._expect(num_tensors, 32, f"{num_tensors} tensors")  # name, one dimension, type and offset, at the least
        self._expect(num_values, 13, f"{num_values} values")
        return num_tensors, num_values

    def _tensor(self, number: int, alignment: int) -> tuple[str, StoredInfo]:
        """One tensor's name and what is said of it; the offset is that in the data yet."""
        name = self._text(MAX_NAME_BYTES, f"the name of tensor {number}")
        dims = self._scalar(TYPE)
        if not 1 <= dims <= MAX_DIMS:
            raise self._damaged(f"the tensor {name} has {dims} dimensions")
        sizes = [self._scalar(COUNT) for _ in range(dims)]
        number_of_type, offset = self._scalar(TYPE), self._scalar(COUNT)
        kind = TENSOR_TYPES.get(number_of_type)
        if kind is None:
            raise UnsupportedError(f"{self.path}: the tensor {name} is of type {number_of_type}, which is not known")
        if min(sizes) < 1 or sizes[0] % kind.block:
            raise self._damaged(f"the tensor {name} has sizes {sizes}, of type {kind.name} in blocks of {kind.block}")
        if offset % alignment:
            raise self._damaged(f"the tensor {name} lies at {offset}, which is no multiple of {alignment}")
        nbytes = math.prod(sizes) // kind.block * kind.nbytes
        return name, StoredInfo(kind.name, tuple(reversed(sizes)), self.path, offset, nbytes)

    def _placed(self, infos: dict[str, StoredInfo], start: int) -> tuple[dict[str, StoredInfo], str]:
        """The tensors with their places in the file, in this order, each one of its own; and that the file ends before
        the last of them, where it does."""
        ordered = sorted(infos.items(), key=lambda item: item[1].offset)
        last, end = "", 0
        for name, info in ordered:
            if info.offset < end:
                raise self._damaged(f"the tensors {last} and {name} lie over each other")
            last, end = name, info.offset + info.nbytes
        damage = ""
        if ordered and start + end > self.size:
            damage = (
                f"{self.path} is truncated: its header describes {start + end} bytes, the file has {self.size} "
                f"({start + end - self.size} missing); download it again"
            )
        placed = {name: StoredInfo(i.dtype, i.shape, i.file, start + i.offset, i.nbytes) for name, i in ordered}
        return placed, damage

    def _value(self, kind: int, key: str) -> Any:
        if kind == FLOAT32:
            return _shortest(self._scalar(SCALARS[kind]))
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == STRING:
            return self._bytes(f"the value of {key}").decode(errors="replace")
        if kind == ARRAY:
            return self._array(key)
        raise self._damaged(f"the value of {key} is of type {kind}, which there is not")

    def _array(self, key: str) -> Any:
        kind, count = self._scalar(TYPE), self._scalar(COUNT)
        if kind not in SCALARS and kind != STRING:
            raise self._damaged(f"{key} is an array of type {kind}, which there is not")
        size = 8 if kind == STRING else SCALARS[kind].size
        self._expect(count, size, f"{count} elements of {key}")
        begin = self.position
        if kind == STRING:
            self._skip_strings(count, key)
        else:
            self._take(count * size)
        array = LongArray(kind, count, bytes(self._buffer[begin : self.position]))
        return list(array) if count <= SHORT else array

    def _skip_strings(self, count: int, key: str) -> None:
        position, unpack, have = self.position, COUNT.unpack_from, len(self._buffer)
        for _ in range(count):
            if position + 8 > have:
                self._fill(position + 8, key)
                have = len(self._buffer)
            position += 8 + unpack(self._buffer, position)[0]
            if position > self._end:
                raise self._short(f"a string of {key}")
        self._fill(position, key)
        self.position = position

    def _text(self, most: int, what: str) -> str:
        raw = self._bytes(what)
        if not 0 < len(raw) <= most:
            raise self._damaged(f"{what} has {len(raw)} bytes")
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise self._damaged(f"{what} is no text") from e

    def _bytes(self, what: str) -> bytes:
        length = self._scalar(COUNT)
        self._expect(length, 1, what)
        return bytes(self._take(length))

    def _scalar(self, how: struct.Struct) -> Any:
        return how.unpack(self._take(how.size))[0]

    def _take(self, count: int) -> bytearray:
        """The next bytes."""
        self._fill(self.position + count, "a value")
        begin, self.position = self.position, self.position + count
        return self._buffer[begin : self.position]

    def _fill(self, end: int, what: str) -> None:
        """Have everything up to byte `end`."""
        if end > self._end:
            raise self._short(what)
        while len(self._buffer) < end:
            wanted = min(self._end, max(end, len(self._buffer) + READ_BYTES)) - len(self._buffer)
            piece = os.pread(self._file, min(wanted, READ_BYTES), len(self._buffer))
            if not piece:
                raise self._short(what)
            self._buffer += piece

    def _expect(self, count: int, least: int, what: str) -> None:
        """See that the rest of the file has room for so many of at least so many bytes."""
        if count * least > self._end - self.position:
            raise self._short(what)

    def _short(self, what: str) -> CheckpointError:
        if self.size > self._end:
            return self._damaged(f"{what} would end beyond {MAX_HEADER_BYTES} bytes, where no header reaches")
        return CheckpointError(
            f"{self.path} is truncated or damaged: {what}, from byte {self.position} on, would end beyond its "
            f"{self.size} bytes"
        )

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: its GGUF header is damaged: {what}")


def _shortest(value: float) -> float:
    """The shortest number that is the same in 32 bits: 1e-06, not 9.999999974752427e-07."""
    how = SCALARS[FLOAT32]
    for digits in range(6, 9):
        rounded = float(f"{value:.{digits}g}")
        with suppress(OverflowError):
            if how.pack(rounded) == how.pack(value):
                return rounded
    return value

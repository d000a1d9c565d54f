"""The header of a file of packed matrices: what lies in it, and whether it is whole. Torch-free.

    8 bytes MAGIC · 8 bytes length of the header · 32 bytes SHA-256 of the header · header, JSON · zeros to 4 KiB ·
    regions, each of whole 4 KiB pages

The cache of packed weights keeps such files (`weights.pack_cache`), and packed checkpoints consist of them (`Packed`).
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from math import prod
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError, MoesaicError, UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.kernels.layouts import round_up
from moesaic.weights.rules import Index, Shape
from moesaic.weights.tensors import ReadableInfo

if TYPE_CHECKING:
    import torch

MAGIC = b"moepack1"
PREFIX = 48  # bytes before the header
PAGE = 4096
SUFFIX = ".moepack"
VERSION = 1  # of what the header of a packed checkpoint says
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class PackedEntry:
    """A packed matrix of a file.

    Attributes:
        name: of the first parameter in it; `.twin` behind it where that fills a second matrix.
        region, offset: where it begins: bytes in the file's region of that number.
    """

    name: str
    rows: int
    cols: int
    format: WeightFormat
    gated: bool
    region: int
    offset: int
    nbytes: int

    def as_json(self) -> list[Any]:
        """How a header spells it."""
        f = self.format
        what = [self.name, self.rows, self.cols, f.kind, f.group, f.offsets, self.gated]
        return [*what, self.region, self.offset, self.nbytes]

    @classmethod
    def of_json(cls, entry: Any) -> "PackedEntry":
        """What a header spells so."""
        name, rows, cols, kind, group, offsets, gated, region, offset, nbytes = entry
        numbers = (rows, cols, region, offset, nbytes)
        if not isinstance(name, str) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"matrix {name!r}")
        return cls(name, rows, cols, WeightFormat(kind, group, bool(offsets)), bool(gated), region, offset, nbytes)


@dataclass(frozen=True)
class PackedInfo(ReadableInfo):
    """A parameter that lies in packed matrices."""

    def read(self, index: Index, into: "torch.Tensor") -> None:
        """Never: packed matrices are read whole, as they are."""
        raise UnsupportedError(
            f"{self.file} holds packed matrices, which are only served: use the checkpoint that they were made of"
        )


@dataclass(frozen=True)
class Packed:
    """One file of a packed checkpoint, as its header describes it.

    Attributes:
        begin: where its first region begins.
        regions: bytes of each.
        checks: checksum of each region's samples.
        layout, quantiser: versions, of where bytes lie and of how codes were chosen.
        isa: instruction set for which it was packed.
        dtype: of weights that are not quantised.
        quantization: the engine's arguments of these names that it was packed with.
        matrices: in the order of the model.
        parameters: canonical name -> shape, and the names of the matrices that it fills.
        remarks: what was suspicious about the weights when they were packed.
        files: how many the checkpoint has; `number` of this one among them.
    """

    path: str
    begin: int
    regions: tuple[int, ...]
    checks: tuple[int, ...]
    layout: int
    quantiser: int
    isa: str
    dtype: str
    quantization: Mapping[str, Any]
    matrices: tuple[PackedEntry, ...]
    parameters: Mapping[str, tuple[Shape, tuple[str, ...]]]
    remarks: tuple[str, ...]
    number: int
    files: int

    @cached_property
    def tensors(self) -> dict[str, PackedInfo]:
        """The parameters, each with its share of the bytes."""
        by_name = {matrix.name: matrix for matrix in self.matrices}
        inside: dict[str, int] = defaultdict(int)
        for shape, names in self.parameters.values():
            for name in names:
                inside[name] += prod(shape)
        found = {}
        for parameter, (shape, names) in self.parameters.items():
            nbytes = sum(by_name[name].nbytes * prod(shape) // inside[name] for name in names)
            first = by_name[names[0]]
            offset = self.begin + sum(self.regions[: first.region]) + first.offset
            found[parameter] = PackedInfo(DTYPES[self.dtype], shape, self.path, offset, nbytes)
        return found

    @cached_property
    def formats(self) -> dict[str, WeightFormat]:
        """Parameter -> format of its (first) matrix."""
        by_name = {matrix.name: matrix.format for matrix in self.matrices}
        return {parameter: by_name[names[0]] for parameter, (_, names) in self.parameters.items()}


def read_header(path: str) -> Packed:
    """What one file of a packed checkpoint holds.

    Raises:
        CheckpointError: it is damaged, cut off, or no such file.
        UnsupportedError: it is of a later version.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            header = read_raw(file)
            size = os.fstat(file.fileno()).st_size
        if header.get("version") != VERSION:
            raise UnsupportedError(
                f"{path} is a packed file of version {header.get('version')!r}, this program reads {VERSION}: "
                "convert the checkpoint again with the program that is to serve it"
            )
        found = _packed(path, header)
    except MoesaicError:
        raise
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        why = str(e) if isinstance(e, ValueError) else f"its header is damaged ({e!r})"
        raise CheckpointError(f"{path}: {why}; copy or convert it again") from e
    whole = found.begin + sum(found.regions)
    if size != whole:
        raise CheckpointError(f"{path} has {size} bytes, its header describes {whole}: copy or convert it again")
    return found


def read_raw(file: FileIO) -> dict[str, Any]:
    """The header of an open file, with `begin` added: where the regions start. Raises ValueError for what is none."""
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


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """All that lies before the first region."""
    text = json.dumps(header, separators=(",", ":")).encode()
    prefix = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
    return (prefix + text).ljust(round_up(PREFIX + len(text), PAGE), b"\0")


def _packed(path: str, header: dict[str, Any]) -> Packed:
    matrices = tuple(map(PackedEntry.of_json, header["matrices"]))
    known, regions = {matrix.name for matrix in matrices}, tuple(map(int, header["regions"]))
    for matrix in matrices:
        if matrix.region >= len(regions) or matrix.offset + matrix.nbytes > regions[matrix.region]:
            raise ValueError(f"{matrix.name} lies outside of the file")
    parameters = {}
    for name, (shape, names) in header["parameters"].items():
        if not names or not known.issuperset(names):
            raise ValueError(f"{name} lies in no matrix of the file")
        parameters[name] = tuple(map(int, shape)), tuple(names)
    layout, quantiser = map(int, header["pack"])
    if header["dtype"] not in DTYPES:
        raise ValueError(f"dtype {header['dtype']!r}")
    return Packed(
        path, header["begin"], regions, tuple(map(int, header["checks"])), layout, quantiser, str(header["isa"]),
        header["dtype"], dict(header["quantization"]), matrices, parameters, tuple(map(str, header["remarks"])),
        int(header["number"]), int(header["files"]),
    )  # fmt: skip

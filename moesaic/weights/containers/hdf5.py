"""HDF5 files (.h5, .hdf5), through h5py: groups' names joined by dots are a tensor's name.

HDF5 has no bfloat16 and no 8-bit floats, so these lie in it as unsigned integers, or as opaque bytes, of their size: an
attribute `dtype` or `torch_dtype` of the dataset, of a group around it or of the file says which. Without one, 16 bits
could be either, and are refused.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.files import open_regular
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ITEM_BITS, TORCH_NAMES, ReadableInfo

if TYPE_CHECKING:
    import torch

SUFFIXES = (".h5", ".hdf5")
ATTRIBUTES = ("dtype", "torch_dtype")
MAX_CHUNK_BYTES = 1 << 30
KINDS = {
    "f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u4": "U32",
    "u8": "U64", "b1": "BOOL",
}  # fmt: skip
AMBIGUOUS = ("u2", "V2", "V1")
BY_TORCH_NAME = {theirs: ours for ours, theirs in TORCH_NAMES.items()}


class Hdf5File:
    """An open file. Raises CheckpointError for a damaged one, UnsupportedError where h5py is not installed."""

    def __init__(self, path: str) -> None:
        try:
            import h5py  # type: ignore[import-untyped]
        except ImportError as e:
            raise UnsupportedError(f"{path} is an HDF5 file: `pip install moesaic[hdf5]` brings what reads it") from e
        self._h5py, self.path = h5py, path
        self._lock = threading.Lock()
        try:
            os.close(open_regular(path))  # h5py would wait for a pipe
            self._file = h5py.File(path, "r")
            self.tensors = {name: self._info(name, dataset) for name, dataset in self._datasets()}
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"cannot read {path}: truncated, damaged or no HDF5 file ({e})") from e

    def read(self, info: "Hdf5Info", index: Index, into: "torch.Tensor") -> None:
        """As of ReadableInfo."""
        import torch

        from moesaic.weights.dtypes import DTYPES

        dataset = self._file[info.key]
        plain = dataset.dtype.newbyteorder("=")
        part = torch.empty(into.shape, dtype=DTYPES[info.dtype])
        numbers = part.reshape(-1).view(torch.uint8).numpy().view(plain).reshape(tuple(into.shape))
        try:
            with self._lock:
                if dataset.shape == ():
                    numbers[...] = dataset[()]
                elif part.numel():
                    dataset.read_direct(numbers, source_sel=index or None)
        except (OSError, RuntimeError, ValueError, TypeError) as e:
            raise CheckpointError(f"{self.path}: dataset {info.key} cannot be read: {e}") from e
        into.copy_(part)

    def _datasets(self) -> Iterator[tuple[str, Any]]:
        """Every dataset by its name; links that lead out of the file, or twice to one group, are refused."""
        seen: set[Any] = set()
        stack: list[tuple[str, Any]] = [("", self._file["/"])]
        while stack:
            name, group = stack.pop()
            address = self._h5py.h5o.get_info(group.id).addr
            if address in seen:
                raise CheckpointError(f"{self.path}: group {group.name} is linked more than once")
            seen.add(address)
            for key in group:
                link = group.get(key, getlink=True)
                if not isinstance(link, self._h5py.HardLink):
                    raise CheckpointError(
                        f"{self.path}: {group.name.rstrip('/')}/{key} is a link to {getattr(link, 'path', '?')}"
                        f"{' in ' + link.filename if hasattr(link, 'filename') else ''}: only data in place is read"
                    )
                inner, inner_name = group[key], f"{name}.{key}" if name else key
                if isinstance(inner, self._h5py.Group):
                    stack.append((inner_name, inner))
                elif isinstance(inner, self._h5py.Dataset):
                    yield inner_name, inner

    def _info(self, name: str, dataset: Any) -> "Hdf5Info":
        if dataset.external or dataset.is_virtual:
            raise CheckpointError(
                f"{self.path}: dataset {dataset.name} keeps its data elsewhere: only data in place is read"
            )
        chunk = dataset.dtype.itemsize
        for size in dataset.chunks or ():
            chunk *= size
        if dataset.shape is None or chunk > MAX_CHUNK_BYTES:
            raise CheckpointError(f"{self.path}: dataset {dataset.name} has no shape, or chunks of {chunk} bytes")
        offset = dataset.id.get_offset() or 0
        return Hdf5Info(self._dtype(dataset), dataset.shape, self.path, offset, key=dataset.name, owner=self)

    def _dtype(self, dataset: Any) -> str:
        """What the numbers of a dataset are, as safetensors spells it."""
        stored = dataset.dtype.newbyteorder("=")
        kind = f"{stored.kind}{stored.itemsize}"
        said = self._said_of(dataset)
        if said is not None and stored.kind in "uV" and ITEM_BITS[said] == 8 * stored.itemsize:
            return said
        if kind in AMBIGUOUS:
            raise CheckpointError(
                f"{self.path}: dataset {dataset.name} is {stored}, which may be bfloat16 or something else: give it, "
                'its group or the file an attribute that says what, such as dtype = "bfloat16"'
            )
        if kind not in KINDS:
            raise CheckpointError(f"{self.path}: dataset {dataset.name} is {stored}, which is not read")
        return KINDS[kind]

    def _said_of(self, dataset: Any) -> str | None:
        """The dtype that the nearest attribute says."""
        holder = dataset
        while True:
            for attribute in ATTRIBUTES:
                if attribute in holder.attrs:
                    value = holder.attrs[attribute]
                    text = value.decode() if isinstance(value, bytes) else str(value)
                    known = BY_TORCH_NAME.get(text.removeprefix("torch."))
                    if known is not None:
                        return known
            if holder.name == "/":
                return None
            holder = holder.parent


@dataclass(frozen=True)
class Hdf5Info(ReadableInfo):
    """A dataset.

    Attributes:
        key: its path in the file.
    """

    key: str = field(kw_only=True)
    owner: Hdf5File = field(kw_only=True, compare=False, repr=False)

    def read(self, index: Index, into: "torch.Tensor") -> None:
        self.owner.read(self, index, into)


def read_header(path: str) -> dict[str, Hdf5Info]:
    """Every tensor of a file by name, in the order in which they lie there. Raises as Hdf5File does."""
    return dict(sorted(Hdf5File(path).tensors.items(), key=lambda item: item[1].offset))

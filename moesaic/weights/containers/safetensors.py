"""One safetensors file: its header checked against its size, its bytes read straight to where they belong.

Our own reader rather than the library's, so that a tensor, or a part of one, lands in the parameter's own memory
without a copy of the file or of the tensor in between. Torch is imported when something is read: headers need none.
"""

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError
from moesaic.weights.rules import Index, Shape
from moesaic.weights.tensors import ITEM_BITS, TensorInfo

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_READ_BYTES = 1 << 30  # Linux reads at most 2 GiB a call
LFS_MAGIC = b"version https://git-lfs"


class SafetensorsFile:
    """An open file; `tensors` is known at once, `read` copies. Raises CheckpointError for a damaged file."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open for as long as this object lives)
            self.tensors = self._read_header()
        except OSError as e:
            raise CheckpointError(f"cannot read {path}: {e}") from e

    def read(self, info: TensorInfo, index: Index, into: "torch.Tensor") -> None:
        """Copy part `index` of a tensor into `into`, which has that part's shape and any dtype and device."""
        import torch

        from moesaic.weights.dtypes import DTYPES

        start, shape = part_range(info.shape, index)
        dtype = DTYPES[info.dtype]
        direct = into.dtype == dtype and into.is_contiguous() and into.device.type == "cpu"
        buffer = into if direct else torch.empty(shape, dtype=dtype)
        self._read_bytes(info.offset + start * dtype.itemsize, buffer)
        if not direct:
            into.copy_(buffer)

    def _read_bytes(self, offset: int, into: "torch.Tensor") -> None:
        """Fill the contiguous CPU tensor `into` from the file, starting at byte `offset`."""
        import torch

        view = memoryview(into.reshape(-1).view(torch.uint8).numpy())
        while view:
            count = os.preadv(self._file.fileno(), [view[:MAX_READ_BYTES]], offset)
            if count == 0:
                raise CheckpointError(f"{self.path} became shorter while it was read")
            view, offset = view[count:], offset + count

    def _read_header(self) -> dict[str, TensorInfo]:
        tensors = _header(self._file, self.path)
        missing = bytes_missing(tensors, os.fstat(self._file.fileno()).st_size)
        if missing:
            raise CheckpointError(_truncated(self.path, tensors, missing))
        return tensors


def survey_header(path: str) -> tuple[dict[str, TensorInfo], str]:
    """What the header of a file describes, and what is wrong with the data behind it: "", or that the file is cut off.

    Raises:
        CheckpointError: not even the header can be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            tensors = _header(file, path)
            missing = bytes_missing(tensors, os.fstat(file.fileno()).st_size)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    return tensors, _truncated(path, tensors, missing) if missing else ""


def bytes_missing(tensors: Mapping[str, TensorInfo], size: int) -> int:
    """How many bytes a file of `size` bytes lacks of what its header describes."""
    return max(0, max((info.offset + info.nbytes for info in tensors.values()), default=0) - size)


def _header(file: FileIO, path: str) -> dict[str, TensorInfo]:
    """Every tensor that the file describes, in the order in which they lie there."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(64)
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: it has {size} bytes, "
            f"its header alone would need {8 + length}"
        )
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        infos = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: its safetensors header is damaged ({e!r})") from e
    return dict(sorted(infos.items(), key=lambda item: item[1].offset))


def _tensor_info(path: str, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in ITEM_BITS:
        raise CheckpointError(f"{path}: tensor {name} has the unknown dtype {dtype}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"shape or offsets of {name}")
    if (end - begin) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
        raise ValueError(f"{name}: {end - begin} bytes for {dtype} {list(shape)}")
    return TensorInfo(dtype, shape, path, data_start + begin)


def _truncated(path: str, tensors: Mapping[str, TensorInfo], missing: int) -> str:
    needed = max(info.offset + info.nbytes for info in tensors.values())
    return (
        f"{path} is truncated: its header describes {needed} bytes, the file has {needed - missing} "
        f"({missing} missing); download it again"
    )


def part_range(shape: Shape, index: Index) -> tuple[int, Shape]:
    """Where part `index` (ints, then at most one slice) of a row-major tensor starts, in elements, and its shape."""
    start, stride = 0, math.prod(shape)
    rest = list(shape)
    for i in index:
        stride //= rest[0] or 1
        if isinstance(i, int):
            start += i * stride
            rest.pop(0)
        else:
            start += int(i.start) * stride
            rest[0] = int(i.stop) - int(i.start)
            break
    return start, tuple(rest)

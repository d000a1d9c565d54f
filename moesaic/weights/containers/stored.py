"""Tensors that lie in a file as plain bytes: from the file straight to where they belong. Torch is imported when
something is read."""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic.core.errors import CheckpointError
from moesaic.core.files import open_regular
from moesaic.weights.rules import Index, Shape
from moesaic.weights.tensors import ReadableInfo

if TYPE_CHECKING:
    import torch

MAX_READ_BYTES = 1 << 30  # Linux reads at most 2 GiB a call
LFS_MAGIC = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredInfo(ReadableInfo):
    """A tensor of which the bytes lie in a file as they are.

    Attributes:
        strides: in elements, one a dimension; None where it lies row after row.
    """

    strides: Shape | None = None

    def read(self, index: Index, into: "torch.Tensor") -> None:
        """As of ReadableInfo. The file is open for just as long: a checkpoint may consist of more files than a process
        may hold open."""
        import torch

        from moesaic.weights.dtypes import DTYPES

        if self.dtype not in DTYPES:
            raise CheckpointError(f"{self.file} holds a tensor in {self.dtype}, with which nothing here computes")
        dtype = DTYPES[self.dtype]
        if self.strides is not None:
            start, shape, strides = _strided_part(self.shape, self.strides, index)
            span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if math.prod(shape) else 0
            buffer = torch.empty(span, dtype=dtype)
            read_bytes(self.file, self.offset + start * dtype.itemsize, buffer)
            into.copy_(buffer.as_strided(shape, strides))
            return
        start, shape = part_range(self.shape, index)
        direct = into.dtype == dtype and into.is_contiguous() and into.device.type == "cpu"
        buffer = into if direct else torch.empty(shape, dtype=dtype)
        read_bytes(self.file, self.offset + start * dtype.itemsize, buffer)
        if not direct:
            into.copy_(buffer)


def read_bytes(path: str, offset: int, into: "torch.Tensor") -> None:
    """Fill the contiguous CPU tensor `into` from a file, starting at byte `offset`."""
    import torch

    view = memoryview(into.reshape(-1).view(torch.uint8).numpy())
    try:
        file = open_regular(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    try:
        while view:
            count = os.preadv(file, [view[:MAX_READ_BYTES]], offset)
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read")
            view, offset = view[count:], offset + count
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    finally:
        os.close(file)


def part_range(shape: Shape, index: Index) -> tuple[int, Shape]:
    """Where part `index` (ints, then at most one slice) of a row-major tensor starts, in elements, and its shape."""
    start, part, _ = _strided_part(shape, row_major(shape), index)
    return start, part


def row_major(shape: Shape) -> Shape:
    """The strides, in elements, of a tensor that lies row after row."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _strided_part(shape: Shape, strides: Shape, index: Index) -> tuple[int, Shape, Shape]:
    """Where part `index` starts, in elements; its shape and its strides."""
    start, rest, steps = 0, list(shape), list(strides)
    for i in index:
        if isinstance(i, int):
            start += i * steps.pop(0)
            rest.pop(0)
        else:
            start += int(i.start) * steps[0]
            rest[0] = int(i.stop) - int(i.start)
            break
    return start, tuple(rest), tuple(steps)


def refuse_pointer(path: str, head: bytes) -> None:
    """Raise CheckpointError where a file is Git LFS's note of where the file itself lies."""
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")

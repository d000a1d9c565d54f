"""A tensor whose parts lie in several files, as tensor-parallel ranks write them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moesaic.weights.rules import Index
from moesaic.weights.tensors import ReadableInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """Rows (columns, where dimension 1 is joined) [start, stop) of a stored tensor."""

    info: ReadableInfo
    start: int
    stop: int


@dataclass(frozen=True)
class JoinedInfo(ReadableInfo):
    """Parts that follow each other along a dimension.

    Attributes:
        dim: 0 or 1.
    """

    parts: tuple[Part, ...] = field(kw_only=True)
    dim: int = field(kw_only=True)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(part.info.file for part in self.parts)

    def read(self, index: Index, into: "torch.Tensor") -> None:
        import torch

        rows, *rest = index or (slice(0, self.shape[0]),)
        if isinstance(rows, int):
            row = torch.empty((1, *self.shape[1:]), dtype=into.dtype)
            self.read((slice(rows, rows + 1),), row)
            into.copy_(row[(0, *rest)])
            return
        at = 0
        for part in self.parts:
            size = part.stop - part.start
            if self.dim == 1:
                part.info.read((rows,), into[:, at : at + size])  # all of its columns
            else:
                first, last = max(rows.start, at), min(rows.stop, at + size)
                if first < last:
                    inside = slice(part.start + first - at, part.start + last - at)
                    part.info.read((inside,), into[first - rows.start : last - rows.start])
            at += size


def join(infos: list[ReadableInfo], dim: int, halves: bool = False) -> ReadableInfo:
    """What ranks hold of a tensor, in the order of the ranks.

    Args:
        halves: each holds a part of its first half and one of its second, such as gate over up; dimension 0 is joined.

    Raises:
        ValueError: their other sizes, or their dtypes, differ.
    """
    first = infos[0]
    if len(infos) == 1:
        return first
    rest = {(info.dtype, *info.shape[:dim], *info.shape[dim + 1 :]) for info in infos}
    if len(rest) > 1 or any(len(info.shape) <= dim for info in infos):
        raise ValueError("the ranks' parts do not fit each other")
    pieces = 2 if halves else 1
    parts = tuple(
        Part(info, info.shape[dim] * piece // pieces, info.shape[dim] * (piece + 1) // pieces)
        for piece in range(pieces)
        for info in infos
    )
    shape = tuple(sum(p.stop - p.start for p in parts) if d == dim else n for d, n in enumerate(first.shape))
    return JoinedInfo(first.dtype, shape, first.file, first.offset, parts=parts, dim=dim)

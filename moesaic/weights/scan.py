"""What numbers show while they are read: whether they are finite, how large they are, and what they can be told by."""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import FLOAT_KINDS
from moesaic.kernels.cpu.library import Unavailable
from moesaic.kernels.cpu.scan import BYTES, ScanArgs, scan


@dataclass(frozen=True)
class Scan:
    """Of the numbers of a tensor, or of a run of them.

    Attributes:
        nonfinite: how many are NaN or infinite.
        first: flat index of the first of these, -1 where there is none.
        squares: sum of the squares of the others; NaN where only codes were seen.
        digest: the same for the same bytes, and hardly ever for others; to be compared with digests made alike only.
        blank: all are zero.
    """

    nonfinite: int
    first: int
    squares: float
    digest: int
    blank: bool

    def then(self, other: "Scan", start: int) -> "Scan":
        """Of these numbers and of others, that begin at flat index `start`."""
        first = self.first if self.first >= 0 or other.first < 0 else start + other.first
        return Scan(
            self.nonfinite + other.nonfinite,
            first,
            self.squares + other.squares,
            hash((self.digest, other.digest, start)),
            self.blank and other.blank,
        )


def scan_numbers(tensor: Tensor) -> Scan:
    """A pass over a tensor of any floating dtype; of single bytes (codes) only the digest says something."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in FLOAT_KINDS or tensor.element_size() == 1:
        try:
            return scan_of(scan(tensor))
        except Unavailable:
            pass
    return _scan_in_torch(tensor)


def scan_of(found: ScanArgs) -> Scan:
    """What C++ saw."""
    squares = math.nan if found.dtype == BYTES else found.squares
    return Scan(found.nonfinite, found.first, squares, found.hash, bool(found.blank))


def scan_codes(codes: Tensor, scales: Tensor, offsets: Tensor | None) -> Scan:
    """A pass over the codes of a weight `[rows, cols]` and their scales and offsets, of which the latter can be wrong.
    `first` is the first column of a group."""
    digest = scan_numbers(codes.contiguous())
    group = -(-codes.shape[1] // scales.shape[1])
    parts = [scan_numbers(part) for part in (scales, offsets) if part is not None]
    blank = all(part.blank for part in parts)
    found = Scan(0, -1, math.nan, hash((digest.digest, *(part.digest for part in parts))), blank)
    wrong = next((part for part in parts if part.nonfinite), None)
    if wrong is None:
        return found
    row, number = divmod(wrong.first, scales.shape[1])
    first = row * codes.shape[1] + number * group
    return Scan(sum(part.nonfinite for part in parts), first, math.nan, found.digest, blank)


def _scan_in_torch(tensor: Tensor) -> Scan:
    digest = zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    if not tensor.is_floating_point():
        return Scan(0, -1, math.nan, digest, not bool(tensor.any()))
    finite = tensor.isfinite().view(-1)
    numbers = tensor.view(-1).double().where(finite, 0)
    wrong = finite.logical_not().nonzero()
    first = int(wrong[0]) if len(wrong) else -1
    return Scan(len(wrong), first, float(numbers.square().sum()), digest, not bool(tensor.any()))

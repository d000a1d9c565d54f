"""Weights of integer codes: `(code - zero) * scale`, with a scale and a zero for each group of inputs of an output.

Codes are taken as unsigned numbers here; signed ones are shifted by half of their range, and so are their zeros.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError
from moesaic.core.formats import GROUPS, Kind, WeightFormat
from moesaic.weights.codecs.codes import Codes
from moesaic.weights.codecs.encoded import Encoded, Parts

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

KINDS: dict[int, Kind] = {4: "w4", 8: "w8"}


@dataclass(frozen=True)
class Integers:
    """Some rows of a weight.

    Attributes:
        codes: `[rows, in]` uint8.
        scales, zeros: `[rows, groups]` fp32; zeros None for half of the codes' range everywhere.
        group_of: group of each input, `[in]`; None where groups follow each other.
    """

    codes: "Array"
    scales: "Array"
    zeros: "Array | None" = None
    group_of: "Array | None" = None


@dataclass(frozen=True)
class IntegerWeight(Encoded):
    """A weight of integer codes, of one or two dimensions more than a row of them.

    Attributes:
        symmetric: the config says that all zeros are half of the codes' range.
    """

    symmetric: bool = False

    @abstractmethod
    def integers(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Integers:
        """Rows [start, stop) of matrix `lead`."""

    def decode(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> "Array":
        import numpy as np

        found = self.integers(parts, lead, start, stop)
        rows, cols = found.codes.shape
        values = found.codes.astype(np.float32)
        half = np.float32(1 << (self.stored.bits - 1))
        if found.group_of is not None:
            values -= half if found.zeros is None else np.take(found.zeros, found.group_of, axis=1)
            values *= np.take(found.scales, found.group_of, axis=1)
            return values
        for first, last, groups in _even_parts(cols, self.stored.group or cols, found.scales.shape[1]):
            part = values[:, first:last].reshape(
                rows, groups.stop - groups.start, -1
            )  # a view, for it cuts columns alone
            part -= half if found.zeros is None else found.zeros[:, groups, None]
            part *= found.scales[:, groups, None]
        return values

    def codes(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Codes:
        import numpy as np
        import torch

        found, half = self.integers(parts, lead, start, stop), 1 << (self.stored.bits - 1)
        if found.group_of is not None:
            raise CheckpointError(
                f"{self.name}: its inputs are not in the order of their groups, though quantization_config says that "
                f"they are; set desc_act to true"
            )
        zeros = found.zeros
        if self.symmetric and zeros is not None:
            if not (zeros == half).all():
                raise CheckpointError(
                    f"{self.name}: its zero points are not all {half}, though quantization_config says that it is "
                    "symmetric; set sym to false"
                )
            zeros = None
        codes = found.codes if self.stored.bits == 4 else (found.codes ^ np.uint8(half)).view(np.int8)
        offsets = None if zeros is None else torch.from_numpy(found.scales * (half - zeros))
        return Codes(torch.from_numpy(codes), torch.from_numpy(found.scales), offsets)


def packed_format(bits: int, group: int, cols: int, symmetric: bool) -> WeightFormat | None:
    """The packed format for such codes; None where there is none.

    Args:
        group: inputs that share a scale; 0 for all.
        cols: inputs.
    """
    if group >= cols:
        group = 0
    if bits not in KINDS or group not in GROUPS:
        return None
    return WeightFormat(KINDS[bits], group, not symmetric)


def unpack(words: "Array", bits: int) -> "Array":
    """`[rows, n]` int32 → `[rows, n * 32 / bits]` uint8: each word's codes, those of its lowest bits first."""
    import numpy as np

    rows = words.shape[0]
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    each = 8 // bits
    codes = np.empty((rows, octets.shape[1], each), np.uint8)
    for place in range(each):
        np.right_shift(octets, np.uint8(place * bits), out=codes[:, :, place])
    codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(rows, -1)


def _even_parts(cols: int, group: int, groups: int) -> list[tuple[int, int, slice]]:
    """`cols` in runs of whole groups: all that are full, and the last one where it is shorter."""
    full = cols // group
    runs = [(0, full * group, slice(0, full))] if full else []
    return runs if full == groups else [*runs, (full * group, cols, slice(full, groups))]

"""A quantised checkpoint's own codes, for sources that can give them: weights then stay as they were quantised.

The terms are those of the packed formats (csrc/common/formats.h). For code q of a weight, with the scale s and the
offset o of its group:

    w4      q in 0..15, uint8       weight = s * (q - 8) + o
    w8      q in -128..127, int8    weight = s * q + o
    mxfp4   q in 0..15, uint8       weight = s * E2M1[q], with the sign in bit 3: the codes of OCP's MX formats
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from moesaic.core.formats import WeightFormat
from moesaic.weights.rules import Index
from moesaic.weights.sources import Source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Codes:
    """Some rows of a quantised weight.

    Attributes:
        codes: `[rows, cols]` uint8 or int8, an element a code, whatever the format packs.
        scales: `[rows, groups]` fp32; group g is of columns [g * group, (g + 1) * group), the last one may be shorter.
        offsets: as the scales, or None where the format has none.
    """

    codes: "torch.Tensor"
    scales: "torch.Tensor"
    offsets: "torch.Tensor | None" = None

    def rows(self, pick: Callable[[Any], Any]) -> "Codes":
        """What `pick` takes of the rows of each."""
        return Codes(pick(self.codes), pick(self.scales), None if self.offsets is None else pick(self.offsets))


class CodedSource(Source, Protocol):
    """A source some of whose tensors are quantised. `tensors` and `read` show them as the floats that they stand for;
    beside that it gives their codes."""

    def format_of(self, name: str) -> WeightFormat | None:
        """The packed format that keeps tensor `name` exactly, but for rounding scales and offsets to bf16; None where
        only floats can be had: it is not quantised, or in a way that no packed format knows. Reads no weights."""

    def transposed(self, name: str) -> bool:
        """Whether the groups of tensor `name` run along its last dimension but one, as where it is stored `[inputs,
        outputs]`: `read_codes` then gives the transpose of what `read` gives."""

    def read_codes(self, name: str, index: Index) -> Codes:
        """The codes of part `index` of a tensor that `format_of` has a format for. The part has two dimensions, and its
        columns are whole: `index` is ints, then at most one slice, of rows; ints alone where it is `transposed`.
        Threads may call it at the same time."""


def is_coded(source: Source) -> TypeGuard[CodedSource]:
    """Whether a source can give codes."""
    return hasattr(source, "read_codes")

"""Weights that several stored tensors hold, and a source that shows them as the floats that they stand for.

What is decoded is a few rows at a time, with numpy: the loader's threads decode side by side, one core each. Torch and
numpy are imported when something is read: headers need neither.
"""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError
from moesaic.core.formats import WeightFormat
from moesaic.weights.codecs.codes import Codes
from moesaic.weights.containers.stored import part_range
from moesaic.weights.rules import Index, Shape
from moesaic.weights.sources import Source
from moesaic.weights.tensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any]

DECODED_AT_ONCE = 1 << 20  # elements
HELD_BYTES = 256 << 20  # of stored tensors that are kept in memory for a while


@dataclass(frozen=True)
class StoredAs:
    """How a weight is kept in a checkpoint.

    Attributes:
        method: as config.json calls it, such as gptq.
        codes: what an element is: int4, int8, float8_e4m3fn, float8_e5m2, float4_e2m1fn.
        group: consecutive inputs that share a scale; 0 for a whole row.
        rows: outputs that share a scale; 0 for all.
    """

    method: str
    codes: str
    group: int
    rows: int = 1

    @property
    def bits(self) -> int:
        """Of an element, without what its scale takes."""
        return int(self.codes.removeprefix("int").removeprefix("float")[0])

    def __str__(self) -> str:
        """`gptq: int4 in groups of 128`."""
        if self.rows == 1:
            return f"{self.method}: {self.codes} {f'in groups of {self.group}' if self.group else 'by row'}"
        if not self.rows:
            return f"{self.method}: {self.codes} with one scale"
        return f"{self.method}: {self.codes} in blocks of {self.rows} x {self.group}"


class Parts:
    """The stored tensors of a source, as they are stored."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def read(self, name: str, index: Index = ()) -> "torch.Tensor":
        """Part `index` of a tensor, in its own dtype."""
        import torch

        from moesaic.weights.dtypes import DTYPES

        info = self._source.tensors[name]
        into = torch.empty(part_range(info.shape, index)[1], dtype=DTYPES[info.dtype])
        self._source.read(name, index, into)
        return into

    def dtype(self, name: str) -> str:
        """As safetensors spells it."""
        return self._source.tensors[name].dtype

    def whole(self, name: str, again: bool) -> "torch.Tensor":
        """A whole tensor. `again`: soon more of it is wanted, so that it is kept for a while."""
        if not again:
            return self.read(name)
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
        tensor = self.read(name)
        with self._lock:
            if name not in self._held:  # another thread may have been faster
                self._held[name] = tensor
                self._held_bytes += tensor.nbytes
            while len(self._held) > 1 and self._held_bytes > HELD_BYTES:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return tensor


@dataclass(frozen=True)
class Encoded(ABC):
    """A weight that several stored tensors hold.

    Attributes:
        name, shape: of the weight: `[out, in]`, or `[experts, out, in]`.
        parts: the names of the stored tensors, by what each is.
        stored: how it is kept.
        format: the packed format that keeps its codes; None where there is none.
    """

    name: str
    shape: Shape
    parts: Mapping[str, str]
    stored: StoredAs
    format: WeightFormat | None = None

    @abstractmethod
    def decode(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> "Array":
        """Rows [start, stop) of matrix `lead` (all dimensions but the last two), `[rows, in]` fp32."""

    def codes(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Codes:
        """The codes of the same rows, where there is a `format`."""
        raise NotImplementedError(f"{self.stored} has no codes of a packed format")


class Codec(ABC):
    """How a checkpoint is quantised, as its config says.

    Attributes:
        notes: what else the config quantises, which stays 16 bits wide here.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def weights(self, tensors: Mapping[str, TensorInfo]) -> list[Encoded]:
        """Every weight that several of these tensors hold. Raises CheckpointError where parts lack or do not fit."""

    def drops(self, name: str) -> bool:
        """Whether a tensor is of no weight, but of how activations or the KV cache were quantised."""
        return False

    def added(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Tensors that the quantiser may have added to all modules: those that are zero mean nothing."""
        return []


class DecodedSource:
    """The tensors of `source`, with each weight that several of them hold in their place, as fp32.

    Args:
        dropped: names of tensors that are left out, for they say nothing about weights.

    Raises:
        CheckpointError: a weight is there decoded and encoded.
    """

    def __init__(self, source: Source, weights: Iterable[Encoded], dropped: Collection[str] = ()) -> None:
        self.naming = source.naming
        self.weights: Mapping[str, Encoded] = {weight.name: weight for weight in weights}
        self._source, self._parts = source, Parts(source)
        self._tensors = self._logical(source.tensors, set(dropped))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name; of a weight, `nbytes` is what all its parts take."""
        return self._tensors

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """As `Source.read`; a weight is decoded some rows at a time."""
        import torch

        weight = self.weights.get(name)
        if weight is None:
            self._source.read(name, index, into)
            return
        begin, shape = part_range(weight.shape, index)
        in_place = into.is_contiguous() and into.device.type == "cpu"
        flat = (into if in_place else torch.empty(shape)).view(-1)
        cols, end = weight.shape[-1], begin + prod(shape)
        row, last = begin // cols, -(-end // cols)
        while row < last:
            lead, start, stop = _rows_together(weight.shape, row, last)
            values = torch.from_numpy(weight.decode(self._parts, lead, start, stop)).view(-1)
            first = max(begin, row * cols)
            row += stop - start
            until = min(end, row * cols)
            at = (row - (stop - start)) * cols
            flat[first - begin : until - begin].copy_(values[first - at : until - at])
        if not in_place:
            into.copy_(flat.view(shape))

    def format_of(self, name: str) -> WeightFormat | None:
        """As `CodedSource.format_of`."""
        weight = self.weights.get(name)
        return None if weight is None else weight.format

    def transposed(self, name: str) -> bool:
        """As `CodedSource.transposed`: groups run along the last dimension."""
        return False

    def read_codes(self, name: str, index: Index) -> Codes:
        """As `CodedSource.read_codes`."""
        weight = self.weights[name]
        lead, rows = index[: len(weight.shape) - 2], index[len(weight.shape) - 2 :]
        start, stop = (int(rows[0].start), int(rows[0].stop)) if rows else (0, weight.shape[-2])  # type: ignore[union-attr]
        return weight.codes(self._parts, tuple(int(i) for i in lead), start, stop)  # type: ignore[arg-type]

    def _logical(self, tensors: Mapping[str, TensorInfo], dropped: set[str]) -> dict[str, TensorInfo]:
        owner = {part: weight for weight in self.weights.values() for part in weight.parts.values()}
        logical: dict[str, TensorInfo] = {}
        for name, info in tensors.items():
            weight = owner.get(name)
            if weight is None and name in self.weights:
                parts = ", ".join(self.weights[name].parts.values())
                raise CheckpointError(f"{info.file} holds {name}, which the checkpoint also holds quantised ({parts})")
            if weight is None and name not in dropped:
                logical[name] = info
            elif weight is not None and weight.name not in logical:
                nbytes = sum(tensors[part].nbytes for part in weight.parts.values())
                logical[weight.name] = TensorInfo("F32", weight.shape, info.file, info.offset, nbytes)
        return logical


def _rows_together(shape: Shape, row: int, last: int) -> tuple[tuple[int, ...], int, int]:
    """Of rows [row, last) of all matrices, those to decode next: a matrix, and a range of its rows."""
    rows = shape[-2]
    number, start = divmod(row, rows)
    lead: list[int] = []
    for size in reversed(shape[:-2]):
        number, place = divmod(number, size)
        lead.insert(0, place)
    most = max(1, DECODED_AT_ONCE // shape[-1])
    return tuple(lead), start, min(rows, start + last - row, start + most)

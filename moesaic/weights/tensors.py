"""What is known of a stored tensor before it is read. Torch-free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

from moesaic.core.errors import CheckpointError
from moesaic.weights.rules import Index, Shape

if TYPE_CHECKING:
    import torch

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes that parameters are filled from
ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "C64": 64,
}  # fmt: skip
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U64": "uint64",
    "I32": "int32", "U32": "uint32", "I16": "int16", "U16": "uint16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint, before it is read.

    Attributes:
        dtype: as safetensors spells it (F32, BF16, ...), or, where that has no word, as the file's own format does.
        file: where it lies.
        offset: of its first byte in the file; 0 where the format has no such thing.
        nbytes: as stored; by default what dtype and shape say.
    """

    dtype: str
    shape: Shape
    file: str
    offset: int = 0
    nbytes: int = -1

    def __post_init__(self) -> None:
        if self.nbytes < 0:
            object.__setattr__(self, "nbytes", prod(self.shape) * ITEM_BITS.get(self.dtype, 0) // 8)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that holds a part of it."""
        return (self.file,)


class ReadableInfo(TensorInfo):
    """One that knows how it is read, whatever it is called in a checkpoint."""

    def read(self, index: Index, into: "torch.Tensor") -> None:
        """Copy part `index` of the tensor into `into`, which has that part's shape and any dtype and device. Threads
        may call it at the same time. Raises CheckpointError."""
        raise NotImplementedError


Info = TypeVar("Info", bound=TensorInfo)


def merge_shards(shards: Iterable[Mapping[str, Info]]) -> dict[str, Info]:
    """All tensors of all shards. Raises CheckpointError when two shards hold the same one."""
    merged: dict[str, Info] = {}
    for shard in shards:
        for name in merged.keys() & shard.keys():
            raise CheckpointError(f"tensor {name} is in {merged[name].file} and again in {shard[name].file}")
        merged.update(shard)
    return merged

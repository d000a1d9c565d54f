"""The tensors of a GGUF checkpoint as the weights that they were made of: decoded, and with what llama.cpp's converter
did to some of them undone. Torch-free until read.

The object behind `quantization_config` says what was done (`models.gguf.config` writes it):

    turned          name of a tensor in each layer, such as attn_q -> heads: rows of a head whose halves take turns
    norms_plus_one  norms' weights were stored with 1 added
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.encoded import Codec, Encoded
from moesaic.weights.containers.gguf import GgufSource
from moesaic.weights.containers.stored import StoredInfo, part_range
from moesaic.weights.rules import Index, Shape
from moesaic.weights.tensors import ITEM_BITS, TensorInfo

if TYPE_CHECKING:
    import torch

    from moesaic.weights.codecs.codes import Codes

PIECE = 1 << 20  # elements that are decoded at once
FORMATS = {  # types whose codes a packed format has
    "Q8_0": WeightFormat("w8", 32),
    "Q4_0": WeightFormat("w4", 32),
    "Q4_1": WeightFormat("w4", 32, offsets=True),
    "Q4_K": WeightFormat("w4", 32, offsets=True),
    "Q5_0": WeightFormat("w8", 32),
    "Q5_1": WeightFormat("w8", 32, offsets=True),
    "Q5_K": WeightFormat("w8", 32, offsets=True),
    "IQ4_NL": WeightFormat("w8", 32),
    "IQ4_XS": WeightFormat("w8", 32),
    "MXFP4": WeightFormat("mxfp4", 32),
}
NOT_DECODED = ("Q8_1", "Q8_K", "Q1_0")  # the first two are of computations, not of files
CLOSE_FORMAT = WeightFormat("w8", 32)  # of all others that are quantised
KEY, VALUE, BOTH = "attn_k_b", "attn_v_b", "attn_kv_b"  # halves of a matrix, and its name


class Gguf(Codec):
    """What a config says of weights in GGUF."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore("quant_method")
        self.turned: dict[str, int] = keys.read(dict, "turned", absent={})
        self.norms_plus_one: bool = keys.read(bool, "norms_plus_one", absent=False)

    def open(self, source: GgufSource) -> "GgufWeights":
        """The weights in `source`. Raises CheckpointError or UnsupportedError."""
        return GgufWeights(source, self)

    def weights(self, tensors: Mapping[str, TensorInfo]) -> list[Encoded]:
        raise CheckpointError("the config says that the weights are GGUF, but they are kept as something else")


class GgufWeights:
    """The weights of a GGUF checkpoint, a `CodedSource`.

    `attn_k_b` and `attn_v_b`, which newer files have in its place, make the `attn_kv_b` of older ones.
    """

    naming = "gguf"

    def __init__(self, source: GgufSource, codec: Gguf) -> None:
        self._turned, self._less_one = codec.turned, codec.norms_plus_one
        self._source = source
        self._logical = {name: _shaped(name, info) for name, info in source.tensors.items()}
        for name, info in self._logical.items():
            self._check(name, info)
        self.tensors: dict[str, TensorInfo] = {
            name: info if info.dtype in ITEM_BITS else replace(info, dtype="F32")
            for name, info in self._logical.items()
        }
        for name in [name for name in self.tensors if f".{KEY}." in name]:
            self._join(name)

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """As of `Source`."""
        if name not in self._logical:
            self._read_joined(name, index, into)
            return
        info = self._logical[name]
        if info.dtype not in ITEM_BITS:
            self._read_blocks(name, info, index, into)
        elif self._heads(name):
            into.copy_(self._plain_turned(name, info)[index])
        else:
            info.read(index, into)
        if self._less_one and name.endswith("norm.weight"):
            into -= 1

    def format_of(self, name: str) -> WeightFormat | None:
        """As of `CodedSource`. Types whose codes no packed format has are rounded to 8 bits in groups of 32, the least
        that keeps them: of the types up to 6 bits this adds a quarter of their own rounding at the most, where the
        halves of a group have scales alike."""
        info = self._logical.get(name)
        if info is None or info.dtype in ITEM_BITS or len(info.shape) < 2:
            return None
        return FORMATS.get(info.dtype, CLOSE_FORMAT)

    def transposed(self, name: str) -> bool:
        """As of `CodedSource`: groups run along rows, always."""
        return False

    def read_codes(self, name: str, index: Index) -> "Codes":
        """As of `CodedSource`."""
        from moesaic.weights.codecs.gguf_blocks import to_codes

        info = self._logical[name]
        first, shape = _rows(info.shape, index)
        count = math.prod(shape[:-1])
        start, stop, pick = self._around(name, info, first, first + count)
        return to_codes(self._source.read_blocks(info, start, stop), info.dtype).rows(pick)

    def _read_blocks(self, name: str, info: StoredInfo, index: Index, into: "torch.Tensor") -> None:
        from moesaic.weights.codecs.gguf_blocks import to_floats

        if len(info.shape) == 1:  # its one row may be asked for in part
            into.copy_(to_floats(self._source.read_blocks(info, 0, 1), info.dtype)[0][index])
            return
        first, shape = _rows(info.shape, index)
        rows = into.view(-1, shape[-1])
        for start, stop in _pieces(rows.shape[0], shape[-1]):
            begin, end, pick = self._around(name, info, first + start, first + stop)
            rows[start:stop] = pick(to_floats(self._source.read_blocks(info, begin, end), info.dtype))

    def _around(self, name: str, info: StoredInfo, start: int, stop: int) -> tuple[int, int, Any]:
        """Which rows are to be read for rows [start, stop) of a weight, and what takes these of what was read."""
        heads = self._heads(name)
        if not heads:
            return start, stop, lambda rows: rows
        size = math.prod(info.shape[:-1]) // heads
        begin, end = start // size * size, -(-stop // size) * size
        return begin, end, lambda rows: _turned_back(rows, size)[start - begin : stop - begin]

    def _plain_turned(self, name: str, info: StoredInfo) -> "torch.Tensor":
        import torch

        from moesaic.weights.dtypes import DTYPES

        whole = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        info.read((), whole)
        return _turned_back(whole, info.shape[0] // self._heads(name))

    def _heads(self, name: str) -> int:
        """Into how many heads the rows of a tensor were turned; 0 where they lie as they did."""
        return self._turned.get(name.split(".")[-2], 0) if "." in name else 0

    def _check(self, name: str, info: StoredInfo) -> None:
        if info.dtype in NOT_DECODED:
            raise UnsupportedError(f"{info.file}: {name} is of type {info.dtype}, which is not decoded here")
        heads = self._heads(name)
        if heads and (len(info.shape) > 2 or info.shape[0] % (2 * heads)):
            raise CheckpointError(f"{info.file}: {name} has the shape {list(info.shape)}, no rows of {heads} heads")
        if ".attn_qkv." in name and self._turned:
            raise CheckpointError(
                f"{info.file}: {name} joins queries, keys and values, of which some were turned: not read for this "
                "architecture; convert the checkpoint again without --fuse-qkv"
            )

    def _join(self, name: str) -> None:
        """Show the halves of one matrix, `[heads, latent, key]` and `[heads, value, latent]`, as
        `[heads * (key + value), latent]`."""
        other = name.replace(KEY, VALUE)
        if other not in self.tensors:
            raise CheckpointError(f"{self.tensors[name].file} has {name}, but no {other}")
        key, value = self.tensors.pop(name), self.tensors.pop(other)
        if len(key.shape) != 3 or len(value.shape) != 3 or key.shape[:2] != (value.shape[0], value.shape[2]):
            raise CheckpointError(f"{key.file}: {name} {list(key.shape)} and {other} {list(value.shape)} do not fit")
        shape = (key.shape[0] * (key.shape[2] + value.shape[1]), key.shape[1])
        self.tensors[name.replace(KEY, BOTH)] = TensorInfo(
            "F32", shape, key.file, key.offset, key.nbytes + value.nbytes
        )

    def _read_joined(self, name: str, index: Index, into: "torch.Tensor") -> None:
        import torch

        key, value = name.replace(BOTH, KEY), name.replace(BOTH, VALUE)
        _, latent, keys = self._logical[key].shape
        values = self._logical[value].shape[1]
        first, shape = part_range(self.tensors[name].shape, index)
        start, stop = first // latent, first // latent + shape[0]
        size = keys + values
        for head in range(start // size, -(-stop // size)):
            rows = torch.empty(size, latent)
            half = torch.empty(latent, keys)
            self.read(key, (head,), half)
            rows[:keys] = half.T
            self.read(value, (head,), rows[keys:])
            begin, end = max(start, head * size), min(stop, (head + 1) * size)
            into[begin - start : end - start] = rows[begin - head * size : end - head * size]


def _turned_back(rows: "torch.Tensor", size: int) -> "torch.Tensor":
    """Rows of whole heads, each of `size`, whose halves took turns: one half after the other again."""
    return rows.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).flatten(0, 2)


def _shaped(name: str, info: StoredInfo) -> StoredInfo:
    """With the shape that the weight has: a gate of one row is stored without that dimension by some converters, a
    correction of the router's choice with one."""
    if ".ffn_gate_inp_shexp." in name:
        return replace(info, shape=(1, info.shape[-1]))
    if ".exp_probs_b." in name:
        return replace(info, shape=(math.prod(info.shape),))
    return info


def _rows(shape: Shape, index: Index) -> tuple[int, Shape]:
    """The first row of part `index`, counted over all dimensions but the last, and the shape of the part."""
    first, part = part_range(shape, index)
    return first // shape[-1], part


def _pieces(count: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // columns)
    for start in range(0, count, step):
        yield start, min(start + step, count)

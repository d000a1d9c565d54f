"""What the blocks of a GGUF tensor stand for: floats of any type, and codes, which of most types are kept as they are.

The layouts of blocks are those of ggml-common.h. Types in LEVELS are taken apart here; floats of all others come from
the `gguf` package. Arithmetic is in place and on what a core's cache holds: the loader's threads run it side by side,
one core each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moesaic.core.errors import ConfigError
from moesaic.weights.codecs.codes import Codes

Array = np.ndarray[Any, Any]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
GROUP = 32  # columns that share a scale, of codes
AT_ONCE = 1 << 17  # elements that are worked on at once
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


@dataclass(frozen=True)
class Levels:
    """Some rows of a weight: scale * (code - zero) + least.

    Attributes:
        codes: `[rows, columns]` uint8 or int8.
        scales, least: `[rows, groups]` fp32; least None where it is 0.
    """

    codes: Array
    scales: Array
    least: Array | None = None
    zero: int = 0

    def floats(self) -> Array:
        """`[rows, columns]` fp32."""
        values = self.codes.astype(np.float32)
        if self.zero:
            values -= np.float32(self.zero)
        groups = _grouped(values, self.scales)
        groups *= self.scales[:, :, None]
        if self.least is not None:
            groups += self.least[:, :, None]
        return values


def to_floats(rows: Bytes, kind: str) -> torch.Tensor:
    """`[rows, bytes]` uint8 -> `[rows, columns]` fp32. Raises ConfigError where the `gguf` package is missing."""
    with np.errstate(all="ignore"):  # of scales that are not finite, which loading looks for
        return torch.from_numpy(_floats(rows, kind))


def to_codes(rows: Bytes, kind: str) -> Codes:
    """`[rows, bytes]` uint8 -> codes: its own of the types in FORMATS (`codecs.gguf`), else rounded to 8 bits."""
    with np.errstate(all="ignore"):
        if kind == "MXFP4":
            codes, scales = _mxfp4(rows)
            return Codes(torch.from_numpy(codes), torch.from_numpy(scales))
        if kind in WHOLE:
            return _as_codes(LEVELS[kind](rows), int(kind in NIBBLES) * 8)
        return _rounded(rows, kind)


def _as_codes(found: Levels, zero: int) -> Codes:
    """The codes of a packed format, of which `zero` is the code of 0: 8 of w4, 0 of w8."""
    codes, least = found.codes, found.least
    if found.zero != zero:
        if not zero:
            codes = (codes - np.uint8(found.zero)).view(np.int8)
        else:
            shift = found.scales * np.float32(zero - found.zero)
            least = shift if least is None else least + shift
    codes = codes if zero else codes.view(np.int8)
    return Codes(
        torch.from_numpy(codes), torch.from_numpy(found.scales), None if least is None else torch.from_numpy(least)
    )


def _floats(rows: Bytes, kind: str) -> Array:
    if kind in LEVELS:
        return LEVELS[kind](rows).floats()
    if kind == "MXFP4":
        codes, scales = _mxfp4(rows)
        values: Array = np.take(E2M1, codes)
        groups = _grouped(values, scales)
        groups *= scales[:, :, None]
        return values
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as e:
        raise ConfigError(
            f"weights of type {kind} in a GGUF file need the gguf package: pip install moesaic[gguf]"
        ) from e
    return np.ascontiguousarray(dequantize(rows, GGMLQuantizationType[kind]), np.float32)


def _rounded(rows: Bytes, kind: str) -> Codes:
    """8-bit codes, under scales that lose nothing as bf16."""
    codes, scales = [], []
    step = max(1, AT_ONCE // (rows.shape[1] * 2))
    for start in range(0, len(rows), step):
        values = torch.from_numpy(_floats(rows[start : start + step], kind))
        groups = values.view(len(values), -1, GROUP)
        largest = torch.maximum(groups.amax(2), -groups.amin(2))  # torch's are several times as fast as numpy's
        scale = (largest / 127).bfloat16().float()
        groups *= scale.reciprocal().where(scale != 0, 0).unsqueeze(2)
        codes.append(values.round_().to(torch.int8))
        scales.append(scale)
    return Codes(torch.cat(codes), torch.cat(scales))


def _q8_0(rows: Bytes) -> Levels:
    """A scale in fp16, then 32 codes in 8 bits with a sign."""
    blocks = _blocks(rows, 34)
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Levels(_rows(codes), _halves(blocks, 0))


def _q4_0(rows: Bytes) -> Levels:
    """A scale in fp16, then 16 bytes: columns 0 to 15 in the low halves, 16 to 31 in the high ones."""
    blocks = _blocks(rows, 18)
    return Levels(_nibbles(blocks[..., 2:]), _halves(blocks, 0), zero=8)


def _q4_1(rows: Bytes) -> Levels:
    """As Q4_0, with the smallest value behind the scale: weight = d * q + m."""
    blocks = _blocks(rows, 20)
    return Levels(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(rows: Bytes) -> Levels:
    """A scale in fp16, the highest bits of the 32 codes, then the others as of Q4_0."""
    blocks = _blocks(rows, 22)
    codes = _nibbles(blocks[..., 6:])
    codes |= _fifth_bits(blocks[..., 2:6])
    return Levels(codes, _halves(blocks, 0), zero=16)


def _q5_1(rows: Bytes) -> Levels:
    """As Q5_0, with the smallest value behind the scale."""
    blocks = _blocks(rows, 24)
    codes = _nibbles(blocks[..., 8:])
    codes |= _fifth_bits(blocks[..., 4:8])
    return Levels(codes, _halves(blocks, 0), _halves(blocks, 2))


def _q4_k(rows: Bytes) -> Levels:
    """256 columns: scales of the scales and of the minima in fp16, eight of each in 6 bits, then codes, the low halves
    of 32 bytes before their high ones: weight = d * scale * q - dmin * minimum."""
    blocks = _blocks(rows, 144)
    return Levels(_nibbles(_runs(blocks[..., 16:], 32)), *_scales_of_8(blocks))


def _q5_k(rows: Bytes) -> Levels:
    """As Q4_K, with 32 bytes before the codes: bit i of each is the highest of a code in the i-th run of 32."""
    blocks = _blocks(rows, 176)
    codes = _nibbles(_runs(blocks[..., 48:], 32))
    runs = codes.reshape(*blocks.shape[:2], 8, 32)
    for i in range(8):
        runs[:, :, i] |= (blocks[..., 16:48] >> np.uint8(i) & np.uint8(1)) << np.uint8(4)
    return Levels(codes, *_scales_of_8(blocks))


def _q6_k(rows: Bytes) -> Levels:
    """256 columns: twice 64 bytes with the low four bits of 128 codes, low halves first; twice 32 bytes with the high
    two of four runs of 32; 16 scales of 8 bits with a sign; a scale of these in fp16."""
    blocks = _blocks(rows, 210)
    codes = _nibbles(_runs(blocks[..., :128], 64))
    runs = codes.reshape(*blocks.shape[:2], 2, 4, 32)
    high = _runs(blocks[..., 128:192], 32)
    for i, shift in enumerate((4, 2, 0)):
        runs[:, :, :, i] |= (high & np.uint8(3 << 2 * i)) << np.uint8(shift)
    runs[:, :, :, 3] |= (high >> np.uint8(2)) & np.uint8(48)
    scales = _halves(blocks, 208)[:, :, None] * blocks[..., 192:208].view(np.int8)
    return Levels(codes, _rows(scales), zero=32)


def _iq4_nl(rows: Bytes) -> Levels:
    """As Q4_0, of codes that number the levels in IQ4."""
    blocks = _blocks(rows, 18)
    return Levels(np.take(IQ4, _nibbles(blocks[..., 2:])), _halves(blocks, 0))


def _iq4_xs(rows: Bytes) -> Levels:
    """256 columns: a scale in fp16 of 8 scales in 6 bits, less 32, first two bits of each, then four; codes as of
    IQ4_NL."""
    blocks = _blocks(rows, 136)
    high = np.ascontiguousarray(blocks[..., 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), axis=-1).reshape(high.shape)
    scales = _halves(blocks, 0)[:, :, None] * ((low | high << 4).astype(np.float32) - 32)
    return Levels(np.take(IQ4, _nibbles(_runs(blocks[..., 8:], 16))), _rows(scales))


def _mxfp4(rows: Bytes) -> tuple[Bytes, Array]:
    """The power of two that scales 32 columns, biased by 127, then codes as in Q4_0: codes of E2M1, and scales."""
    blocks = _blocks(rows, 17)
    scales = np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 127)
    return _nibbles(blocks[..., 1:]), scales


LEVELS: dict[str, Callable[[Bytes], Levels]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip
NIBBLES = ("Q4_0", "Q4_1", "Q4_K")  # whose codes are of w4; of others in WHOLE, of w8
WHOLE = tuple(kind for kind in LEVELS if kind != "Q6_K")  # that have a scale for each 32 columns


def _scales_of_8(blocks: Bytes) -> tuple[Array, Array]:
    """Scales and least values of Q4_K and Q5_K."""
    low, mixed, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = np.concatenate((low & 63, (rest & 15) | (low >> 6 << 4)), axis=-1)
    minimum = np.concatenate((mixed & 63, (rest >> 4) | (mixed >> 6 << 4)), axis=-1)
    scales = _halves(blocks, 0)[:, :, None] * scale.astype(np.float32)  # [rows, blocks, 8]
    least = -_halves(blocks, 2)[:, :, None] * minimum.astype(np.float32)
    return _rows(scales), _rows(least)


def _fifth_bits(octets: Bytes) -> Bytes:
    """`[rows, blocks, 4]` -> `[rows, columns]`: each bit as that of 16."""
    bits: Bytes = np.unpackbits(octets, axis=-1, bitorder="little")
    bits <<= np.uint8(4)
    return _rows(bits)


def _blocks(rows: Bytes, nbytes: int) -> Bytes:
    """`[rows, blocks, nbytes]`."""
    return rows.reshape(rows.shape[0], -1, nbytes)


def _runs(octets: Bytes, size: int) -> Bytes:
    """`[rows, blocks, n]` in runs: `[rows, blocks, n / size, size]`."""
    return octets.reshape(*octets.shape[:2], -1, size)


def _rows(array: Array) -> Array:
    return array.reshape(array.shape[0], -1)


def _grouped(values: Array, scales: Array) -> Array:
    """`[rows, columns]` as `[rows, groups, columns of each]`, in place."""
    return values.reshape(*scales.shape, -1)


def _nibbles(packed: Bytes) -> Bytes:
    """`[rows, ..., bytes]` -> `[rows, columns]` uint8: of each run of bytes the low halves, then the high ones."""
    codes = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, np.uint8(15), out=codes[..., 0, :])
    np.right_shift(packed, np.uint8(4), out=codes[..., 1, :])
    return _rows(codes)


def _halves(blocks: Bytes, at: int) -> Array:
    """The fp16 number at byte `at` of each block: `[rows, blocks]` fp32."""
    halves: Array = np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)
    return halves

"""What the blocks of a GGUF tensor stand for: floats of any type, and of some types codes that are kept as they are.

The layouts of blocks are those of ggml-common.h; floats come from the `gguf` package, which is theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from moesaic.core.errors import ConfigError
from moesaic.weights.codecs.codes import Codes

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
GROUP = 32  # columns that share a scale


def to_floats(rows: Bytes, kind: str) -> torch.Tensor:
    """`[rows, bytes]` uint8 -> `[rows, columns]` fp32. Raises ConfigError where the `gguf` package is missing."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as e:
        raise ConfigError(
            f"weights of type {kind} in a GGUF file need the gguf package: pip install moesaic[gguf]"
        ) from e
    with np.errstate(all="ignore"):  # of scales that are not finite, which loading looks for
        floats = np.ascontiguousarray(dequantize(rows, GGMLQuantizationType[kind]), np.float32)
    return torch.from_numpy(floats)


def to_codes(rows: Bytes, kind: str) -> Codes:
    """`[rows, bytes]` uint8 -> codes: its own of the types in FORMATS (`codecs.gguf`), else rounded to 8 bits."""
    if kind in _CODES:
        return _CODES[kind](rows)
    return _rounded(to_floats(rows, kind))


def _rounded(weights: torch.Tensor) -> Codes:
    """8-bit codes of `[rows, columns]`, under scales that lose nothing as bf16."""
    groups = weights.unflatten(1, (-1, GROUP))  # [rows, groups, 32]
    scales = (groups.abs().amax(2) / 127).bfloat16().float()
    codes = (groups / scales.unsqueeze(2).clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-128, 127)
    return Codes(codes.to(torch.int8).flatten(1), scales)


def _q8_0(rows: Bytes) -> Codes:
    """A scale in fp16, then 32 codes in 8 bits with a sign."""
    blocks = _blocks(rows, 34)
    codes = _tensor(blocks[..., 2:]).view(torch.int8)
    return Codes(codes.flatten(1), _halves(blocks, 0))


def _q4_0(rows: Bytes) -> Codes:
    """A scale in fp16, then 16 bytes: columns 0 to 15 in the low halves, 16 to 31 in the high ones."""
    blocks = _blocks(rows, 18)
    return Codes(_nibbles(blocks[..., 2:]), _halves(blocks, 0))


def _q4_1(rows: Bytes) -> Codes:
    """As Q4_0, with the smallest value behind the scale: weight = d * q + m."""
    blocks = _blocks(rows, 20)
    scales = _halves(blocks, 0)
    return Codes(_nibbles(blocks[..., 4:]), scales, _halves(blocks, 2) + 8 * scales)


def _q4_k(rows: Bytes) -> Codes:
    """256 columns: scales of the scales and of the minima in fp16, eight of each in 6 bits, then codes, the low halves
    of 32 bytes before their high ones: weight = d * scale * q - dmin * minimum."""
    blocks = _blocks(rows, 144)
    low, mixed, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = np.concatenate((low & 63, (rest & 15) | (low >> 6 << 4)), axis=-1)
    minimum = np.concatenate((mixed & 63, (rest >> 4) | (mixed >> 6 << 4)), axis=-1)
    scales = _halves(blocks, 0).unsqueeze(2) * _tensor(scale).float()  # [rows, blocks, 8]
    offsets = 8 * scales - _halves(blocks, 2).unsqueeze(2) * _tensor(minimum).float()
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return Codes(codes, scales.flatten(1), offsets.flatten(1))


def _mxfp4(rows: Bytes) -> Codes:
    """The power of two that scales 32 columns, biased by 127, then codes as in Q4_0."""
    blocks = _blocks(rows, 17)
    scales = torch.exp2(_tensor(blocks[..., 0]).float() - 127)
    return Codes(_nibbles(blocks[..., 1:]), scales)


_CODES: dict[str, Callable[[Bytes], Codes]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "MXFP4": _mxfp4,
}  # fmt: skip


def _blocks(rows: Bytes, nbytes: int) -> Bytes:
    """`[rows, blocks, nbytes]`."""
    return rows.reshape(rows.shape[0], -1, nbytes)


def _nibbles(packed: Bytes) -> torch.Tensor:
    """`[rows, ..., bytes]` -> `[rows, columns]` uint8: of each run of bytes the low halves, then the high ones."""
    return _tensor(np.concatenate((packed & 15, packed >> 4), axis=-1)).flatten(1)


def _halves(blocks: Bytes, at: int) -> torch.Tensor:
    """The fp16 number at byte `at` of each block: `[rows, blocks]` fp32."""
    return _tensor(blocks[..., at : at + 2]).view(torch.float16).squeeze(-1).float()


def _tensor(array: Bytes) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))

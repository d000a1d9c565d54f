"""MXFP4: 4-bit floats in blocks of 32, each block with a power of two as its scale.

`{name}_blocks` `[experts, rows, blocks, 16]` uint8, two numbers a byte, that of the lower bits first, and
`{name}_scales` `[experts, rows, blocks]` uint8, of which b is 2^(b - 127). A number is sign, two bits of exponent, one
of mantissa. What they stand for keeps the name of the blocks, and their orientation, `[experts, rows, blocks * 32]`:
gpt-oss stores it transposed where it stores floats.

OCP Microscaling Formats (MX) Specification 1.0.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError
from moesaic.core.formats import WeightFormat
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.codes import Codes
from moesaic.weights.codecs.encoded import Codec, Encoded, Parts, StoredAs
from moesaic.weights.codecs.integers import unpack
from moesaic.weights.codecs.parts import Tensors, check
from moesaic.weights.rules import Index

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 32
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Mxfp4(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore("quant_method", "modules_to_not_convert", "dequantize", "use_kernels")

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every quantised weight. Raises CheckpointError."""
        stems = {n.removesuffix(kind): None for n in tensors for kind in ("_blocks", "_scales") if n.endswith(kind)}
        found: list[Encoded] = []
        for stem in stems:
            for kind in ("_blocks", "_scales"):
                if stem + kind not in tensors:
                    raise CheckpointError(f"{stem}{kind} is missing: an MXFP4 weight consists of blocks and scales")
            found.append(_weight(tensors, f"{stem}_blocks", f"{stem}_scales"))
        return found


def _weight(tensors: Tensors, blocks: str, scales: str) -> "Mxfp4Weight":
    info = tensors[blocks]
    if info.dtype != "U8" or len(info.shape) not in (3, 4) or info.shape[-1] != BLOCK // 2 or 0 in info.shape:
        raise CheckpointError(
            f"{info.file}: {blocks} is {info.dtype} {list(info.shape)}, but the blocks of an MXFP4 weight are U8 "
            f"[experts, rows, blocks, {BLOCK // 2}]"
        )
    check(tensors, scales, ("U8", "F8_E8M0"), info.shape[:-1], f"{blocks} {list(info.shape)}")
    shape = (*info.shape[:-2], info.shape[-2] * BLOCK)
    stored = StoredAs("mxfp4", "float4_e2m1fn", BLOCK)
    return Mxfp4Weight(blocks, shape, {"blocks": blocks, "scales": scales}, stored, WeightFormat("mxfp4", BLOCK))


@dataclass(frozen=True)
class Mxfp4Weight(Encoded):
    """One weight, or the stacked ones of all experts."""

    def decode(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> "Array":
        import numpy as np

        octets, scales = self._read(parts, lead, start, stop)
        values = np.take(_pairs(), octets).view(np.float32)  # [rows, blocks, 32]
        values *= scales[:, :, None]
        return values.reshape(stop - start, -1)

    def codes(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Codes:
        import numpy as np
        import torch

        octets, scales = self._read(parts, lead, start, stop)
        words = octets.reshape(stop - start, -1).view(np.int32)
        return Codes(torch.from_numpy(unpack(words, 4)), torch.from_numpy(scales))

    def _read(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> "tuple[Array, Array]":
        """Octets `[rows, blocks, 16]` and scales `[rows, blocks]` fp32."""
        import torch

        rows: Index = (*lead, slice(start, stop))
        scales = parts.read(self.parts["scales"], rows).view(torch.float8_e8m0fnu)
        return parts.read(self.parts["blocks"], rows).numpy(), scales.float().numpy()


@cache
def _pairs() -> "Array":
    """The two numbers of each byte, fp32, `[256]`, as one float64: of these, only the bytes count."""
    import numpy as np

    numbers = np.array([*E2M1, *(-number for number in E2M1)], np.float32)
    octets = np.arange(256)
    return np.stack([numbers[octets & 15], numbers[octets >> 4]], axis=-1).view(np.float64).reshape(-1)

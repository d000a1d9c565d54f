"""Weights of 8-bit floats (FP8): each is a stored number times a scale of its block of rows and columns."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError
from moesaic.weights.codecs.encoded import Encoded, Parts, StoredAs
from moesaic.weights.codecs.parts import SCALES, Tensors, spellings

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any]

FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
POWERS = ("F8_E8M0", "U8")  # scales that are powers of two: 2^(byte - 127)


@dataclass(frozen=True)
class ScaledWeight(Encoded):
    """One weight, or the stacked ones of all experts.

    Attributes:
        block: rows and columns that share a scale; 0 for all.
        scales: shape of the scales of one matrix: `[rows / block, cols / block]`.
    """

    block: tuple[int, int] = (0, 0)
    scales: tuple[int, int] = (1, 1)

    def decode(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> "Array":
        import numpy as np

        stored = parts.read(self.parts["weight"], (*lead, slice(start, stop)))
        values = _floats(stored)
        height, width = (size or all for size, all in zip(self.block, self.shape[-2:], strict=True))
        scales = self._scales(parts, lead)
        for row in range(start // height, -(-stop // height)):
            rows = slice(max(row * height - start, 0), min((row + 1) * height, stop) - start)
            values[rows] *= np.repeat(scales[row], width)[: values.shape[1]]
        return values

    def _scales(self, parts: Parts, lead: tuple[int, ...]) -> "Array":
        """Of one matrix, fp32."""
        import torch

        stored = parts.read(self.parts["scale"], lead)
        if stored.dtype == torch.uint8:
            stored = stored.view(torch.float8_e8m0fnu)
        scales: Array = stored.float().numpy()
        return scales.reshape(self.scales)


def scaled_weight(
    tensors: Tensors, name: str, weight: str, scale: str, method: str, block: tuple[int, int] | None
) -> ScaledWeight:
    """A weight of FP8 and its scale: one for all, for each row, for groups of columns, or for blocks, as its shape has
    it.

    Args:
        name: of the weight that they stand for.
        block: what the config says of blocks, if anything.

    Raises:
        CheckpointError: the two do not fit each other.
    """
    info, scales = tensors[weight], tensors[scale]
    if len(info.shape) not in (2, 3) or 0 in info.shape:
        raise CheckpointError(f"{info.file}: {weight} is {info.dtype} {list(info.shape)}: no matrix, nor stacked ones")
    if scales.dtype not in (*SCALES, *POWERS):
        raise CheckpointError(f"{scales.file}: {scale} is {scales.dtype}, which is no dtype of scales")
    kinds = [(info.shape[-2], 0), (1, 0), *([block] if block else [])]
    for height, width in kinds:
        grid = -(-info.shape[-2] // height), -(-info.shape[-1] // (width or info.shape[-1]))
        if scales.shape in spellings(info.shape[:-2], grid):
            group = 0 if grid[1] == 1 else width
            stored = StoredAs(method, FP8[info.dtype], group, 0 if grid == (1, 1) else height)
            return ScaledWeight(
                name, info.shape, {"weight": weight, "scale": scale}, stored, None, (height, width), grid
            )
    blocks = f", or for blocks of {block[0]} x {block[1]}" if block else ""
    raise CheckpointError(
        f"{scales.file}: {scale} is {scales.dtype} {list(scales.shape)}, but a weight {list(info.shape)} needs a scale "
        f"for all, for each row{blocks}"
    )


def _floats(stored: "torch.Tensor") -> "Array":
    """A contiguous tensor of FP8 as fp32: two numbers at a time where it has an even number of them."""
    import numpy as np
    import torch

    if stored.numel() % 2:
        odd: Array = stored.float().numpy()
        return odd
    octets = stored.view(torch.uint8).view(-1).view(torch.uint16).numpy()
    values: Array = np.take(_pairs(stored.dtype), octets).view(np.float32)
    return values.reshape(stored.shape)


@cache
def _pairs(dtype: Any) -> "Array":
    """The two fp32 that each two bytes stand for, `[65536]`, as one float64: of these, only the bytes count."""
    import numpy as np
    import torch

    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    pairs: Array = np.stack([np.tile(numbers, 256), np.repeat(numbers, 256)], axis=-1)
    return pairs.view(np.float64).reshape(-1)

"""Bytes of what kernels read, as arithmetic: packed matrices, keys and values, recurrent state. Torch-free.

This repeats csrc/common/formats.h and csrc/kernels/kv_layout.h, for those who must know sizes before anything is there;
tests compare.
"""

import math
from dataclasses import dataclass

from moesaic.core.formats import WeightFormat

PANEL = 32  # outputs that are packed together
TILE = 16  # tokens that the CPU kernels keep together
STATE_COLUMNS = 32  # of a matrix of state that lie together: MOESAIC_STATE_COLUMNS of csrc/abi/recurrent.h
BITS = {"f32": 32, "f16": 16, "bf16": 16, "w8": 8, "w4": 4, "w8a8": 8, "mxfp4": 4}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def matrix_bytes(rows: int, cols: int, format: WeightFormat, gated: bool = False, quads: bool = False) -> int:
    """Bytes of a packed matrix `[rows, cols]`.

    Args:
        gated: rows are gate's, then up's, interleaved.
        quads: the instruction set multiplies 8-bit codes four at a time (VNNI), which keeps sums beside them.
    """
    panels = -(-(rows // 2) // (PANEL // 2)) if gated else -(-rows // PANEL)
    bits = BITS[format.kind]
    if not format.quantised:
        return panels * PANEL * (cols + cols % 2 if bits == 16 else cols) * bits // 8
    group = format.group or round_up(cols, 8)
    scales = 2 + 2 * format.offsets + 4 * (quads and format.kind == "w8a8")
    return panels * PANEL * -(-cols // group) * (group * bits // 8 + scales)


def matrix_state(heads: int, key_dim: int, value_dim: int) -> tuple[int, ...]:
    """The shape of a state that is a matrix `[key_dim, value_dim]` for each head: blocks of its columns, each of which
    memory streams in order."""
    return heads, -(-value_dim // STATE_COLUMNS), key_dim, STATE_COLUMNS


@dataclass(frozen=True)
class KVLayout:
    """What a layer keeps of each token.

    Attributes:
        value_dim: of a value, where it is not head_dim.
        latent: a value is the first `value_dim` numbers of its key, and not kept apart (MLA).
        by_token: of a latent one, that tokens lie one after the other wherever tiles hold 16.
    """

    num_kv_heads: int
    head_dim: int
    value_dim: int | None = None
    latent: bool = False
    by_token: bool = False

    def bytes_per_block(self, block_size: int, dtype: str, tiled: bool = True) -> int:
        """Memory of one block of so many tokens, keys and values.

        Args:
            dtype: a floating one; or int8, codes with one fp32 scale per token and head for the key and the value.
            tiled: laid out as the CPU kernels read it, with padding.
        """
        item = ITEM_BYTES[dtype]
        value = self.head_dim if self.value_dim is None else self.value_dim
        if not tiled:
            scales = 4 * (1 if self.latent else 2) if dtype == "int8" else 0
            return block_size * self.num_kv_heads * ((self.head_dim + (0 if self.latent else value)) * item + scales)
        width = 1 if self.by_token else TILE if block_size % TILE == 0 else round_up(block_size, 2)
        pair = 2 if dtype == "bfloat16" and not self.by_token else 1
        size = round_up(round_up(self.head_dim, pair) * width * item, 64)
        if not self.latent:
            size += round_up(value, TILE) * width * item
        if dtype == "int8":
            size += 2 * width * 4
        return round_up(size, 64) * -(-block_size // width) * self.num_kv_heads


def state_bytes(*shapes: tuple[int, ...]) -> int:
    """Memory of one sequence's state in a layer: fp32 numbers of these shapes."""
    return 4 * sum(math.prod(shape) for shape in shapes)


def round_up(n: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `n`."""
    return -(-n // unit) * unit

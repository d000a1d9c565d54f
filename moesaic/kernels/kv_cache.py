"""The paged cache of one attention layer: what it keeps of each token, its bytes, and its allocation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from moesaic.kernels.cpu.attention import TiledCache
    from moesaic.kernels.reference_attention import KVCache

TILE = 16  # tokens that the CPU kernels keep together (csrc/kernels/kv_layout.h)


@dataclass(frozen=True)
class KVCacheSpec:
    """What one layer keeps of each token: a key and a value per KV head.

    Attributes:
        dtype: a floating one; or int8, codes with one fp32 scale per token and head for the key and one for the value.
        value_dim: of a value, where it is not head_dim.
        latent: a value is the first `value_dim` numbers of its key, and not kept apart (MLA).
        by_token: of a latent one, that tokens lie one after the other wherever tiles hold 16, for it is read at chosen
            positions.
        tiled: laid out as the CPU kernels read it (`kernels.cpu.attention`), else as the oracle does.
    """

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    value_dim: int | None = None
    latent: bool = False
    by_token: bool = False
    tiled: bool = False

    @property
    def value_size(self) -> int:
        """Numbers in a value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def bytes_per_token(self) -> float:
        """Of a block of 16 tokens, each one's share."""
        return self.bytes_per_block(TILE) / TILE

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, keys and values."""
        if self.tiled:
            return self._tiled_bytes(block_size)
        stored = self.head_dim + (0 if self.latent else self.value_size)
        scales = 4 * (1 if self.latent else 2) if self.dtype is torch.int8 else 0
        return block_size * self.num_kv_heads * (stored * self.dtype.itemsize + scales)

    def _tiled_bytes(self, block_size: int) -> int:
        """The same, with the padding of csrc/kernels/kv_layout.h, whose arithmetic this repeats (a test compares)."""
        width = 1 if self.by_token else TILE if block_size % TILE == 0 else _round_up(block_size, 2)
        pair = 2 if self.dtype is torch.bfloat16 and not self.by_token else 1
        size = _round_up(_round_up(self.head_dim, pair) * width * self.dtype.itemsize, 64)
        if not self.latent:
            size += _round_up(self.value_size, TILE) * width * self.dtype.itemsize
        if self.dtype is torch.int8:
            size += 2 * width * 4
        return _round_up(size, 64) * -(-block_size // width) * self.num_kv_heads

    def allocate(self, num_blocks: int, block_size: int, device: torch.device | str) -> "KVCache | TiledCache":
        """An empty cache. On a CPU, memory is committed as blocks are first written."""
        from moesaic.kernels import reference_attention
        from moesaic.kernels.cpu import attention as cpu

        if self.tiled:
            return cpu.new_cache(self, num_blocks, block_size)
        return reference_attention.new_cache(self, num_blocks, block_size, device)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit

"""The paged cache of one attention layer: what it keeps of each token, its bytes, and its allocation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moesaic.kernels.layouts import TILE, KVLayout

if TYPE_CHECKING:
    from moesaic.kernels.cpu.attention import TiledCache
    from moesaic.kernels.reference_attention import KVCache


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
        layout = KVLayout(self.num_kv_heads, self.head_dim, self.value_dim, self.latent, self.by_token)
        return layout.bytes_per_block(block_size, str(self.dtype).removeprefix("torch."), self.tiled)

    def allocate(self, num_blocks: int, block_size: int, device: torch.device | str) -> "KVCache | TiledCache":
        """An empty cache. On a CPU, memory is committed as blocks are first written."""
        from moesaic.kernels import reference_attention
        from moesaic.kernels.cpu import attention as cpu

        if self.tiled:
            return cpu.new_cache(self, num_blocks, block_size)
        return reference_attention.new_cache(self, num_blocks, block_size, device)

"""The paged cache of one attention layer: what it needs, and the tensors that hold it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of all sequences, each `[num_blocks, block_size, kv_heads, head_dim]`.

    Token p of a sequence with block table `t` lies in flat slot `t[p // block_size] * block_size + p % block_size`.
    """

    key: Tensor
    value: Tensor

    @property
    def block_size(self) -> int:
        return self.key.shape[1]


@dataclass(frozen=True)
class KVCacheSpec:
    """What one layer keeps of each token: a key and a value per KV head."""

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, keys and values."""
        return block_size * self.bytes_per_token

    def allocate(self, num_blocks: int, block_size: int, device: torch.device | str) -> KVCache:
        """An empty cache. On a CPU, memory is committed as blocks are first written."""
        shape = (num_blocks, block_size, self.num_kv_heads, self.head_dim)
        return KVCache(_lazy_zeros(shape, self.dtype, device), _lazy_zeros(shape, self.dtype, device))


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros. numpy asks the system for zeroed pages, which cost nothing until touched; torch would write them."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)

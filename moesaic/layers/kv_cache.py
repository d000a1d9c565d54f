"""The paged caches of attention layers: what they keep (`KVCacheSpec`), and the layouts that backends read."""

from moesaic.kernels.cpu.attention import TiledCache
from moesaic.kernels.kv_cache import KVCacheSpec
from moesaic.kernels.reference_attention import KVCache

__all__ = ["KVCache", "KVCacheSpec", "TiledCache"]

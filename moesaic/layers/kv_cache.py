"""What layers keep of sequences: keys and values in pages, recurrent state in slots, and the layouts of both."""

from moesaic.kernels.cpu.attention import TiledCache
from moesaic.kernels.kv_cache import KVCacheSpec
from moesaic.kernels.reference_attention import KVCache
from moesaic.kernels.state_cache import StateCache, StateSpec
from moesaic.layers.expert_tables import ExpertPagesSpec, SharedPages

Cache = KVCache | TiledCache | StateCache | SharedPages
CacheSpec = KVCacheSpec | StateSpec | ExpertPagesSpec

__all__ = [
    "Cache",
    "CacheSpec",
    "ExpertPagesSpec",
    "KVCache",
    "KVCacheSpec",
    "SharedPages",
    "StateCache",
    "StateSpec",
    "TiledCache",
]

"""The pools of a model in which experts keep keys and values: layers that keep them alike share one."""

from collections.abc import Iterable, Sequence

from moesaic.layers.kv_cache import Cache, CacheSpec, ExpertPagesSpec, KVCacheSpec
from moesaic.layers.moe_paged_attention import MoEPagedAttention


class ExpertPools:
    """All layers of a model whose experts keep keys and values; false where it has none."""

    def __init__(self, layers: Iterable[MoEPagedAttention]) -> None:
        self.layers = list(layers)
        self._pooled: dict[KVCacheSpec, list[MoEPagedAttention]] = {}
        for layer in self.layers:
            self._pooled.setdefault(layer.cache_spec, []).append(layer)

    def __bool__(self) -> bool:
        return bool(self.layers)

    def cache_specs(self) -> list[CacheSpec]:
        """One of each pool."""
        return [_pool_of(kv, layers) for kv, layers in self._pooled.items()]

    def lend(self, pools: Sequence[Cache]) -> None:
        """Let the layers keep what they keep in these pools, which `cache_specs` describes."""
        for layers, pages in zip(self._pooled.values(), pools, strict=True):
            for layer in layers:
                layer.pages = pages  # type: ignore[assignment]

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Give back what sequences have here."""
        for seq_id in seq_ids:
            for layer in self.layers:
                layer.free(seq_id)


def _pool_of(kv: KVCacheSpec, layers: Iterable[MoEPagedAttention]) -> ExpertPagesSpec:
    """The pool of layers that keep keys and values alike."""
    sizes = [(layer.top_k, len(layer.experts)) for layer in layers]
    return ExpertPagesSpec(kv, sum(k for k, _ in sizes), sum(experts - 1 for k, experts in sizes if k < experts))

"""What all layers of one step share: the batch, and what is derived from it once instead of in every layer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.reference_indexer import Selection
from moesaic.layers.kv_cache import KVCache, TiledCache
from moesaic.models.spec import QueryTemperature


class Step:
    """One forward pass over a batch. Tables and plans are made when the first layer asks for them.

    Attributes:
        shortcut: `[T, hidden]`, what a layer leaves for the next one to add; None for nothing.
        selection: the positions that the last layer with an indexer of its own has chosen.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.shortcut: Tensor | None = None
        self.selection: Selection | None = None
        self._made: dict[Any, Any] = {}

    def rope(self, make: Callable[..., Any], inverse: Tensor, factor: float) -> Any:
        """A backend's table of the batch's positions; layers with equal rope share one `inverse` tensor."""
        key = make, id(inverse), factor
        if key not in self._made:
            self._made[key] = make(self.batch.positions, inverse, factor)
        return self._made[key]

    def temperature(self, make: Callable[..., Any], spec: QueryTemperature) -> Any:
        """A backend's factors on the batch's queries, `[T, 1]`."""
        key = make, spec
        if key not in self._made:
            self._made[key] = make(self.batch.positions, spec.scale, spec.period, spec.offset, spec.growth)
        return self._made[key]

    def attention_plan(
        self, plan: Callable[..., Any], cache: KVCache | TiledCache, window: int | None, kind: str = "sliding"
    ) -> Any:
        """A backend's plan of the batch for layers with such a cache and window; its own type, for its own use."""
        key = plan, cache.shape_key, window, kind
        if key not in self._made:
            self._made[key] = plan(self.batch, cache, window, kind)
        return self._made[key]

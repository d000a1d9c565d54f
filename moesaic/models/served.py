"""What the worker asks of a model, whoever wrote its code."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.step import NewSequence
from moesaic.experts.stats import ExpertStats
from moesaic.experts.steering import Steering
from moesaic.layers.kv_cache import CacheSpec


class ServedModel(Protocol):
    """A model that runs batches over caches.

    Attributes:
        replayable: its decode steps may be recorded: they call kernels alone.
        expert_stats: what its routers tell; without taps where it has none, or where they are asked out of our sight.
        steering: what sequences ask of the routes to experts.
        hooked: somebody wants to look in between, so that a recording may not be replayed.
    """

    replayable: bool
    expert_stats: ExpertStats
    steering: Steering

    @property
    def hooked(self) -> bool: ...

    def __call__(self, batch: Batch, caches: Sequence[Any]) -> Tensor:
        """Hidden states `[T, hidden]` of the batch's tokens."""

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """`[T, hidden]` -> `[N, vocab]` float32, of the given `rows` `[N]` or of all."""

    def cache_specs(self) -> Sequence[CacheSpec]:
        """The caches that it wants."""

    def weight_bytes(self) -> int:
        """Memory of its weights."""

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Sequences have come, or come back after a preemption."""

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left: they finished, or are computed anew."""

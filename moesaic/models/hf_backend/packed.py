"""A step's sequences packed into one row, with our paged attention: chunks, prefix caching and preemption as ever."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.step import NewSequence
from moesaic.layers.kv_cache import KVCache, KVCacheSpec
from moesaic.models.hf_backend.attention import PagedAttention
from moesaic.models.hf_backend.facts import ForeignSpec
from moesaic.models.hf_backend.model import ForeignModel


class PackedModel(ForeignModel):
    """A model that keeps nothing of a sequence but keys and values."""

    def __init__(self, model: Any, spec: ForeignSpec, wanted: str, kv_dtype: torch.dtype, block_size: int) -> None:
        super().__init__(model, spec, wanted)
        self.attention = PagedAttention(self.device, kv_dtype, block_size, wanted)
        with torch.inference_mode(), self.attention.learning():
            token = torch.zeros(1, dtype=torch.int64, device=self.device)
            self._hidden(token, token, use_cache=False)
        self.expert_stats.learn()
        self.expert_stats.reset()

    @torch.inference_mode()
    def __call__(self, batch: Batch, caches: Sequence[KVCache]) -> Tensor:
        """The final hidden states `[T, hidden]` of the batch's tokens, normed."""
        with self.attention.running(batch, caches):
            hidden: Tensor = self._hidden(batch.token_ids, batch.positions, use_cache=False).last_hidden_state[0]
        return hidden

    def cache_specs(self) -> list[KVCacheSpec]:
        """What each attention layer keeps of a token, in the order in which they compute."""
        return self.attention.specs

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Sequences have come: all that is kept of them will lie in the caches."""

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left: all that was kept of them lies in the caches."""

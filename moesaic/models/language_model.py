"""A model of ours as the worker knows it (`models.served`): the decoder that a spec builds, or a hand-written class."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moesaic.core.batch import Batch
from moesaic.core.step import NewSequence
from moesaic.experts.stats import ExpertStats
from moesaic.experts.steering import Steering
from moesaic.layers.base import Layer
from moesaic.layers.expert_pools import ExpertPools
from moesaic.layers.kv_cache import Cache, CacheSpec
from moesaic.layers.moe_paged_attention import MoEPagedAttention
from moesaic.weights.report import LoadReport

_GLOBAL_HOOKS = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)


class LanguageModel(Layer):
    """Tokens in, logits out, over paged caches.

    Attributes:
        spec: at least vocab_size, max_position_embeddings, num_parameters and num_active_parameters.
        replayable: its decode steps may be recorded.
        pools: of experts that keep keys and values; their caches stand behind all others.
        expert_stats: tokens routed to each expert of each layer since the start.
        steering: what sequences ask of the routes.
        load_report: what loading saw of the weights; nothing where they are dummies.
    """

    spec: Any
    load_report: LoadReport = LoadReport()
    expert_stats: ExpertStats
    steering: Steering
    pools: ExpertPools
    replayable = True

    def forward(self, batch: Batch, caches: Sequence[Cache]) -> Tensor:
        """The final hidden states `[T, hidden]` of the batch's tokens, normed.

        Args:
            caches: as `cache_specs` describes them; the step's keys, values and states are written into them.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """`[T, hidden]` -> `[N, vocab]` float32, of the given `rows` `[N]` or of all."""
        raise NotImplementedError

    def cache_specs(self) -> list[CacheSpec]:
        """What the layers keep of tokens and of sequences, layer after layer."""
        raise NotImplementedError

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Sequences have come: all that is kept of them will lie in the caches."""

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Give back what sequences have in pools of experts; all else is in caches that the scheduler hands out."""
        self.pools.forget(seq_ids)

    def completed(self) -> None:
        """The model has all its layers: find what must be known of them in each step."""
        self.pools = ExpertPools(m for m in self.modules() if isinstance(m, MoEPagedAttention))
        self.replayable = not self.pools  # whom a token visits is known when it is routed
        self._hooks = [hooks for m in self.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._unhooked_at = -1  # how many hooks had ever been registered when none of them was left here

    @property
    def hooked(self) -> bool:
        """Whether somebody wants to look in between: a forward hook on some layer, as torch has them.

        Asked at every step, so the layers are looked at only after another hook was registered anywhere.
        """
        registered = RemovableHandle.next_id
        if registered == self._unhooked_at:
            return False
        if any(self._hooks) or any(_GLOBAL_HOOKS):
            return True
        self._unhooked_at = registered
        return False

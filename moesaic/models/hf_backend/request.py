"""One cache of transformers' a sequence, for models that keep more than keys and values, or read masks themselves.

Prompts are computed whole, and the sequences of a step one after the other. Only the experts are ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.step import NewSequence
from moesaic.experts.stats import joined
from moesaic.kernels.state_cache import StateCache, StateSpec
from moesaic.models.hf_backend.facts import ForeignSpec
from moesaic.models.hf_backend.model import ForeignModel

PROBE_TOKENS = 64  # long enough that a cache's growth shows beside what it keeps in any case


@dataclass(frozen=True)
class HeldElsewhere:
    """The place of a paged cache in the accounts of memory: transformers keeps the sequences' caches itself.

    Attributes:
        bytes_per_token: what a sequence's cache grows by.
    """

    bytes_per_token: float

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of a block's tokens."""
        return max(1, round(self.bytes_per_token * block_size))

    def allocate(self, num_blocks: int, block_size: int, device: torch.device | str) -> "HeldElsewhere":
        """Nothing: blocks only count how much memory sequences take."""
        return self

    def fill_(self, value: float) -> None:
        """There is nothing to fill."""


class StateElsewhere(StateSpec):
    """What a sequence's cache has in any case, however short it is: a slot counts it, and holds nothing."""

    @classmethod
    def of(cls, nbytes: int) -> "StateElsewhere":
        """A state of this size."""
        return cls({"held": (-(-nbytes // 4),)})

    def allocate(self, num_slots: int, device: torch.device | str = "cpu") -> StateCache:
        """Nothing."""
        return StateCache({})


@dataclass
class _Kept:
    """What there is of a sequence: transformers' cache, of `length` tokens."""

    cache: Any
    length: int


class RequestModel(ForeignModel):
    """A model whose sequences' caches transformers makes, one each."""

    def __init__(self, model: Any, spec: ForeignSpec, wanted: str) -> None:
        super().__init__(model, spec, wanted)
        self._kept: dict[int, _Kept] = {}
        self._prompt_lens: dict[int, int] = {}
        growth, state = self._sizes()
        self._specs = [HeldElsewhere(growth), *([StateElsewhere.of(state)] if state else [])]

    @torch.inference_mode()
    def __call__(self, batch: Batch, caches: Sequence[Any]) -> Tensor:
        """The final hidden states `[T, hidden]` of the batch's tokens, normed."""
        parts, routes, row = [], [], 0
        for seq_id, count, length in zip(batch.seq_ids, batch.query_lens_host, batch.seq_lens_host, strict=True):
            rows = slice(row, row + count)
            row += count
            token_ids, positions = batch.token_ids[rows], batch.positions[rows]
            for piece in self._pieces(seq_id, count, length):
                parts.append(self._advance(seq_id, token_ids[piece], positions[piece], length - count + piece.start))
                routes.append(list(self.expert_stats.routes))
        self.expert_stats.routes[:] = joined(routes)
        return torch.cat(parts)

    def _pieces(self, seq_id: int, count: int, length: int) -> list[slice]:
        """All of a sequence's tokens at once; or its prompt and then each token of its output, where that matters."""
        prompt = self._prompt_lens.get(seq_id, count)
        if self.spec.entry.resumes == "whole" or count < length or count <= prompt:
            return [slice(0, count)]
        return [slice(0, prompt), *(slice(at, at + 1) for at in range(prompt, count))]

    def _advance(self, seq_id: int, token_ids: Tensor, positions: Tensor, start: int) -> Tensor:
        """One sequence's next tokens: its hidden states `[n, hidden]`."""
        kept = _Kept(None, 0) if start == 0 else self._kept.get(seq_id)
        if kept is None or kept.length != start or (start and len(token_ids) > 1):
            raise RuntimeError(f"sequence {seq_id} goes on at {start}, but what is kept of it does not end there")
        output = self._hidden(token_ids, positions, past_key_values=kept.cache, use_cache=True)
        self._kept[seq_id] = _Kept(output.past_key_values, start + len(token_ids))
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def cache_specs(self) -> list[HeldElsewhere | StateElsewhere]:
        """The accounts of what transformers keeps: for each token, and for each sequence."""
        return list(self._specs)

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Sequences have come: remember where their prompts end."""
        for new in sequences:
            self._prompt_lens[new.seq_id] = new.prompt_len

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left: drop their caches."""
        for seq_id in seq_ids:
            self._kept.pop(seq_id, None)
            self._prompt_lens.pop(seq_id, None)

    @torch.inference_mode()
    def _sizes(self) -> tuple[float, int]:
        """Bytes that a sequence's cache grows by for each token, and bytes that it has beside."""
        sizes = []
        for count in (PROBE_TOKENS, 2 * PROBE_TOKENS):
            tokens = torch.zeros(count, dtype=torch.int64, device=self.device)
            self._advance(-1, tokens, torch.arange(count, device=self.device), 0)
            sizes.append(_bytes_in(self._kept.pop(-1).cache, set()))
        self.expert_stats.learn()
        self.expert_stats.reset()
        growth = (sizes[1] - sizes[0]) / PROBE_TOKENS
        return growth, round(sizes[0] - growth * PROBE_TOKENS)


def _bytes_in(value: Any, seen: set[int]) -> int:
    """Memory of all tensors in a cache, whatever it is made of."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes_in(part, seen) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_in(part, seen) for part in value)
    own = type(value).__module__.startswith("transformers") and hasattr(value, "__dict__")
    return _bytes_in(vars(value), seen) if own else 0

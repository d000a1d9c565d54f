"""From logits to tokens: in C++ where its library is there, else in numpy. Both come to the same tokens.

Each row is decided by itself: its draw depends on its logits, parameters, seed and position alone, never on who shares
the batch, nor on how often it was preempted. `kernels.reference_sampling` defines it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from moesaic.core.request import LogprobRow
from moesaic.core.sampling_params import SamplingParams
from moesaic.kernels import reference_sampling
from moesaic.kernels.cpu import sampling
from moesaic.kernels.cpu.library import Unavailable, library
from moesaic.kernels.reference_sampling import Logits, SamplingRow, Tokens

__all__ = ["NOT_FINITE", "Sampler", "SamplingRow", "logprob_rows", "sample"]

NOT_FINITE = "the model's logits are not finite (NaN or infinity): see its dtype and weights"


@cache
def _compiled() -> bool:
    """Whether the C++ library is there."""
    try:
        library()
    except Unavailable:
        return False
    return True


@dataclass(slots=True)
class _Asked:
    """What the sequence in a slot asks for."""

    params: SamplingParams
    seed: int
    prompt_len: int
    stop_token_ids: list[int]


class Sampler:
    """Chooses tokens for sequences whose parameters were written once.

    Args:
        tokens: `[slots, most tokens]` int64, contiguous: prompt and output of the sequence in each slot, kept up to
            date by its owner.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._asked: list[_Asked | None] = [None] * len(tokens)
        self._table = sampling.ParamsTable(len(tokens)) if _compiled() else None

    def learn(self, slot: int, params: SamplingParams, seed: int, prompt_len: int, stop_token_ids: list[int]) -> None:
        """A sequence takes a slot; its stop tokens cannot be drawn before min_tokens."""
        self._asked[slot] = _Asked(params, seed, prompt_len, stop_token_ids)
        if self._table is not None:
            self._table.set(slot, params, seed, self._tokens[slot], prompt_len, stop_token_ids)

    def sample(self, logits: torch.Tensor, slots: Sequence[int], lengths: Sequence[int]) -> list[int | None]:
        """Choose the next token of the sequences in these slots, which are `lengths` long.

        Args:
            logits: `[N, V]` float32, one row a slot; changed in place where a row's parameters ask for it.

        Returns:
            N token ids; None for a row whose logits are not finite.
        """
        if self._table is not None:
            if logits is not self._table.logits:
                logits = logits.cpu().contiguous()
            return sampling.sample(logits, self._table, slots, lengths)
        rows = [self._row(slot, length) for slot, length in zip(slots, lengths, strict=True)]
        return reference_sampling.sample(logits.cpu().numpy(), rows)

    def _row(self, slot: int, length: int) -> SamplingRow:
        asked = self._asked[slot]
        assert asked is not None, f"nothing is in slot {slot}"
        tokens = self._tokens[slot, :length]
        return SamplingRow(asked.params, asked.seed, asked.prompt_len, tokens, asked.stop_token_ids)


def sample(logits: Logits, rows: list[SamplingRow]) -> list[int | None]:
    """Choose one token a row, for rows that come with their parameters.

    Args:
        logits: `[N, V]` float32; changed in place where a row's parameters ask for it.
        rows: N of them.

    Returns:
        N token ids; None for a row whose logits are not finite.
    """
    if not _compiled():
        return reference_sampling.sample(logits, rows)
    table = sampling.ParamsTable(len(rows))
    for i, row in enumerate(rows):
        table.set(i, row.params, row.seed, row.token_ids, row.prompt_len, row.stop_token_ids)
    lengths = [len(row.token_ids) for row in rows]
    return sampling.sample(torch.from_numpy(logits), table, range(len(rows)), lengths)


def logprob_rows(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log-probabilities of raw logits `[N, V]`: each row's own token first, then its `count` best, best first."""
    if not _compiled() or logits.device.type != "cpu":
        return reference_sampling.logprob_rows(logits, token_ids, counts)
    return sampling.logprob_rows(logits.contiguous(), token_ids, counts)
